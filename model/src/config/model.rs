//! Section `model` of the configuration, and what the data adds to it.

use serde::{Deserialize, Serialize};

use super::{Family, HeadKind, ModelClass};
use crate::error::{Error, Result};

/// Section `model`: a bidirectional transformer with or without a head on CLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Which model.
    pub class: ModelClass,
    /// Classes C of the head. A classification head needs it, a length head takes `max_length` if none, a stopping head has 2.
    pub num_classes: Option<i64>,
    /// Model width d.
    pub d_model: i64,
    /// Transformer blocks.
    pub num_layers: i64,
    /// Attention heads H; the head width is d / H.
    pub nhead: i64,
    /// Feed-forward width F; none means 4 d.
    pub dim_feedforward: Option<i64>,
    /// Dropout probability.
    pub dropout: f64,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Epsilon inside the square root of every layer norm.
    pub layer_norm_eps: f64,
    /// Features of a head that are rotated, from the first; even, at most the head width; none means 64. Rotary models only.
    pub rotary_emb_dim: Option<i64>,
    /// Largest position; none takes it from the block sizes.
    pub max_length: Option<i64>,
    /// True leaves out the layer norm before the output matrix; none is the class's default: only `gpt2_classification` and
    /// `gpt2_stopping` have the norm.
    pub final_layer_without_normalization: Option<bool>,
    /// True starts all blocks from the same values, as the reference does. Rotary models only.
    pub identical_layers: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            class: ModelClass::default(),
            num_classes: None,
            d_model: 768,
            num_layers: 12,
            nhead: 12,
            dim_feedforward: None,
            dropout: 0.1,
            activation: Activation::Relu,
            layer_norm_eps: 1e-5,
            rotary_emb_dim: None,
            max_length: None,
            final_layer_without_normalization: None,
            identical_layers: false,
        }
    }
}

impl ModelConfig {
    /// Feed-forward width F: the setting, or 4 d for none and for 0.
    pub fn feed_forward(&self) -> i64 {
        self.dim_feedforward.filter(|&width| width != 0).unwrap_or(self.d_model.saturating_mul(4))
    }

    /// Width h of one attention head.
    pub fn head_width(&self) -> i64 {
        self.d_model / self.nhead.max(1)
    }

    /// Features of a head that are rotated.
    pub fn rotated(&self) -> i64 {
        self.rotary_emb_dim.unwrap_or(64)
    }

    /// Whether a layer norm comes before the output matrix.
    pub fn has_final_norm(&self) -> bool {
        !self.final_layer_without_normalization.unwrap_or(self.class.lacks_final_norm())
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// One sentence with the key, its value and what would do.
    pub fn validate(&self) -> Result<()> {
        let widths = [
            ("d_model", self.d_model),
            ("num_layers", self.num_layers),
            ("nhead", self.nhead),
            ("dim_feedforward", self.feed_forward()),
            ("rotary_emb_dim", self.rotated()),
            ("max_length", self.max_length.unwrap_or(1)),
            ("num_classes", self.num_classes.unwrap_or(1)),
        ];
        for (key, value) in widths {
            if !(1..=LARGEST_WIDTH).contains(&value) {
                return fail(format!("model.{key} = {value} must lie in 1..={LARGEST_WIDTH}"));
            }
        }
        let Self { d_model, nhead, .. } = self;
        if d_model % nhead != 0 {
            return fail(format!("model.d_model = {d_model} must be a multiple of model.nhead = {nhead}"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("model.dropout = {} must be at least 0 and below 1", self.dropout));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            return fail(format!("model.layer_norm_eps = {} must be above 0", self.layer_norm_eps));
        }
        match self.class.family() {
            Family::Rotary => self.validate_rotary()?,
            Family::Gpt2 => self.validate_gpt2()?,
        }
        self.validate_head()
    }

    fn validate_rotary(&self) -> Result<()> {
        let (rotated, head) = (self.rotated(), self.head_width());
        if rotated > head {
            return fail(format!(
                "model.rotary_emb_dim = {rotated} is above the head width {head} (d_model {} / nhead {}); use at most \
                 {head}",
                self.d_model, self.nhead
            ));
        }
        if rotated % 2 != 0 {
            return fail(format!("model.rotary_emb_dim = {rotated} must be even"));
        }
        Ok(())
    }

    /// What only rotary models have would be silently without effect.
    fn validate_gpt2(&self) -> Result<()> {
        let class = self.class.key();
        if let Some(rotated) = self.rotary_emb_dim {
            return fail(format!(
                "model.rotary_emb_dim = {rotated} has no meaning for model.class = \"{class}\"; choose one of the model \
                 files gpt2_* or clear it with model.rotary_emb_dim="
            ));
        }
        if self.identical_layers {
            return fail(format!(
                "model.identical_layers = true has no meaning for model.class = \"{class}\""
            ));
        }
        if self.layer_norm_eps != GPT2_LAYER_NORM_EPS {
            return fail(format!(
                "model.layer_norm_eps = {} does not fit model.class = \"{class}\", which has {GPT2_LAYER_NORM_EPS}",
                self.layer_norm_eps
            ));
        }
        Ok(())
    }

    fn validate_head(&self) -> Result<()> {
        let class = self.class.key();
        match (self.class.head(), self.num_classes) {
            (HeadKind::Classification, None) => {
                fail(format!("model.class = \"{class}\" needs model.num_classes"))
            }
            (HeadKind::None, Some(classes)) => fail(format!(
                "model.num_classes = {classes} has no meaning for model.class = \"{class}\", which has no head"
            )),
            (HeadKind::Stopping, Some(classes)) if classes != 2 => fail(format!(
                "model.num_classes = {classes} does not fit model.class = \"{class}\", whose head has 2 classes"
            )),
            _ => Ok(()),
        }
    }
}

fn fail(message: String) -> Result<()> {
    Err(Error::Config(message))
}

/// The reference's GPT-2 models have no setting for it.
const GPT2_LAYER_NORM_EPS: f64 = 1e-5;

/// Bound on every width, so that products of two never overflow.
const LARGEST_WIDTH: i64 = 1 << 24;

/// A model's settings together with what the data fixes.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Section `model`.
    pub config: ModelConfig,
    /// Vocabulary size V, special tokens included.
    pub num_embeddings: i64,
    /// The token whose embedding is never trained.
    pub padding_idx: i64,
    /// Length of the longest row; positions count from 0.
    pub max_length: i64,
    /// Type of the matrix products.
    pub precision: Precision,
    /// What training keeps of a forward pass.
    pub recompute: Recompute,
}

/// What training keeps of a forward pass for its backward pass. Losses and gradients are the same bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything.
    #[default]
    None,
    /// The input of each block, which is computed again: a third more work for a fraction of the memory.
    Blocks,
}

/// Type of the operands of the matrix products in blocks and output layer. Parameters, norms, softmax, losses and sums are
/// always fp32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Exact to the reference's vectors.
    #[default]
    Fp32,
    /// Products of operands rounded to bfloat16, several times as fast where the processor has instructions for them.
    Bf16,
}

impl ModelShape {
    /// Number of positions that have an entry in the model's table: the rotary table has one more than `max_length`.
    pub fn positions(&self) -> i64 {
        match self.config.class.family() {
            Family::Rotary => self.max_length + 1,
            Family::Gpt2 => self.max_length,
        }
    }

    /// Classes C of the head; none if there is no head.
    pub fn num_classes(&self) -> Option<i64> {
        match self.config.class.head() {
            HeadKind::None => None,
            HeadKind::Classification => self.config.num_classes,
            HeadKind::Stopping => Some(2),
            HeadKind::Length => Some(self.config.num_classes.unwrap_or(self.max_length)),
        }
    }

    /// Checks the settings and the sizes.
    ///
    /// # Errors
    /// One sentence with the key, its value and what would do.
    pub fn validate(&self) -> Result<()> {
        self.config.validate()?;
        let Self { num_embeddings, padding_idx, max_length, .. } = self;
        if !(1..=LARGEST_WIDTH).contains(num_embeddings) {
            return Err(Error::Config(format!(
                "the vocabulary size {num_embeddings} must lie in 1..={LARGEST_WIDTH}"
            )));
        }
        if !(0..*num_embeddings).contains(padding_idx) {
            return Err(Error::Config(format!(
                "the padding id {padding_idx} is outside the vocabulary of {num_embeddings} ids"
            )));
        }
        if !(1..=LARGEST_WIDTH).contains(max_length) {
            return Err(Error::Config(format!(
                "model.max_length = {max_length} must lie in 1..={LARGEST_WIDTH}"
            )));
        }
        Ok(())
    }
}

/// Activation of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// GELU: its tanh approximation in rotary models, the exact form in GPT-2 models, as in the reference.
    Gelu,
}
