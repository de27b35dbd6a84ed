//! Sections `model`, `loss` and `predictor` of the configuration, and the rules their values obey.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Section `model`: the rotary transformer with a stopping head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
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
    /// Features of a head that are rotated, from the first; even, at most the head width.
    pub rotary_emb_dim: i64,
    /// Largest position; none takes it from the block sizes.
    pub max_length: Option<i64>,
    /// True leaves out the layer norm before the output matrix.
    pub final_layer_without_normalization: bool,
    /// True starts all blocks from the same values, as the reference does.
    pub identical_layers: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            d_model: 768,
            num_layers: 12,
            nhead: 12,
            dim_feedforward: None,
            dropout: 0.1,
            activation: Activation::Relu,
            layer_norm_eps: 1e-5,
            rotary_emb_dim: 64,
            max_length: None,
            final_layer_without_normalization: true,
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
            ("rotary_emb_dim", self.rotary_emb_dim),
            ("max_length", self.max_length.unwrap_or(1)),
        ];
        for (key, value) in widths {
            if !(1..=LARGEST_WIDTH).contains(&value) {
                return Err(Error::Config(format!("model.{key} = {value} must lie in 1..={LARGEST_WIDTH}")));
            }
        }
        let Self { d_model, nhead, rotary_emb_dim, .. } = self;
        if d_model % nhead != 0 {
            return Err(Error::Config(format!(
                "model.d_model = {d_model} must be a multiple of model.nhead = {nhead}"
            )));
        }
        let head = self.head_width();
        if *rotary_emb_dim > head {
            return Err(Error::Config(format!(
                "model.rotary_emb_dim = {rotary_emb_dim} is above the head width {head} (d_model {d_model} / nhead \
                 {nhead}); use at most {head}"
            )));
        }
        if rotary_emb_dim % 2 != 0 {
            return Err(Error::Config(format!("model.rotary_emb_dim = {rotary_emb_dim} must be even")));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Config(format!(
                "model.dropout = {} must be at least 0 and below 1",
                self.dropout
            )));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(Error::Config(format!(
                "model.layer_norm_eps = {} must be above 0",
                self.layer_norm_eps
            )));
        }
        Ok(())
    }
}

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
    /// Largest position number.
    pub max_length: i64,
    /// Type of the matrix products.
    pub precision: Precision,
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
    /// The tanh approximation of GELU.
    Gelu,
}

/// Section `loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Weight of the stopping head's loss, in [0, 1].
    pub length_loss_weight: f64,
    /// Weight s of the class "complete"; "tokens missing" gets 1 - s. None weighs both 1.
    pub stopping_class_weight: Option<f64>,
    /// MiB of logits that are alive at once; examples are taken in groups that fit.
    pub head_budget_mib: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { length_loss_weight: 1.0, stopping_class_weight: None, head_budget_mib: 64 }
    }
}

impl LossConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence with the key, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let weights = [
            ("length_loss_weight", Some(self.length_loss_weight)),
            ("stopping_class_weight", self.stopping_class_weight),
        ];
        for (key, value) in weights {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                return Err(Error::Config(format!("loss.{key} = {value} must lie in [0, 1]")));
            }
        }
        if self.head_budget_mib == 0 {
            return Err(Error::Config("loss.head_budget_mib = 0 must be at least 1".to_owned()));
        }
        Ok(())
    }

    /// Weights of the classes "complete" and "tokens missing".
    pub(crate) fn class_weights(&self) -> [f64; 2] {
        self.stopping_class_weight.map_or([1.0, 1.0], |weight| [weight, 1.0 - weight])
    }
}

/// Section `predictor`: insertion until the stopping head is content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictorConfig {
    /// Most insertions per row.
    pub max_steps: usize,
    /// Rows of this many tokens (CLS, BOS and prompt counted) are not extended; none: the model's.
    pub max_length: Option<usize>,
    /// A row goes on while P(complete) is below this.
    pub stopping_threshold: f64,
    /// Divides the stopping head's logits.
    pub stopping_temperature: f64,
    /// How the token is drawn (or position and token at once, if the second method is none).
    pub sampling_method: SamplingMethod,
    /// k of the token's top-k.
    pub top: i64,
    /// p of the token's top-p.
    pub p: f64,
    /// How the position is drawn.
    pub second_sampling_method: Option<SamplingMethod>,
    /// k of the position's top-k.
    pub second_top: i64,
    /// p of the position's top-p.
    pub second_p: f64,
    /// True forbids insertions between prompt tokens.
    pub protect_prompt: bool,
    /// True inserts at least one token.
    pub force_predict_first_step: bool,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            max_steps: 128,
            max_length: None,
            stopping_threshold: 0.9,
            stopping_temperature: 1.0,
            sampling_method: SamplingMethod::Sample,
            top: 1000,
            p: 0.9,
            second_sampling_method: None,
            second_top: 1000,
            second_p: 0.9,
            protect_prompt: false,
            force_predict_first_step: false,
        }
    }
}

impl PredictorConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence with the key, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        if self.max_steps == 0 {
            return fail("predictor.max_steps = 0 must be at least 1".to_owned());
        }
        if self.max_length == Some(0) {
            return fail("predictor.max_length = 0 must be at least 1".to_owned());
        }
        if !(0.0..=1.0).contains(&self.stopping_threshold) {
            let value = self.stopping_threshold;
            return fail(format!("predictor.stopping_threshold = {value} must lie in [0, 1]"));
        }
        if !(self.stopping_temperature > 0.0 && self.stopping_temperature.is_finite()) {
            let value = self.stopping_temperature;
            return fail(format!("predictor.stopping_temperature = {value} must be above 0"));
        }
        for (key, value) in [("top", self.top), ("second_top", self.second_top)] {
            if value < 1 {
                return fail(format!("predictor.{key} = {value} must be at least 1"));
            }
        }
        for (key, value) in [("p", self.p), ("second_p", self.second_p)] {
            if !(value > 0.0 && value <= 1.0) {
                return fail(format!("predictor.{key} = {value} must be above 0 and at most 1"));
            }
        }
        Ok(())
    }
}

/// How one of several scored choices is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplingMethod {
    /// From the softmax.
    Sample,
    /// From the softmax over the k largest.
    SampleTopK,
    /// From the softmax over the largest whose probabilities sum to at most p.
    SampleTopP,
}
