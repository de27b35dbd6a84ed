//! Sections `model`, `loss` and `predictor` of the configuration.

use serde::{Deserialize, Serialize};

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
