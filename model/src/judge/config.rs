//! Which causal language model a judge is: the `config.json` that the library transformers keeps beside its weights.

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::ops::activation::Curve;

/// A causal language model that can judge texts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum JudgeConfig {
    /// GPT-2 in any of its sizes.
    Gpt2(Gpt2Config),
    /// Llama, up to its third generation.
    Llama(Box<LlamaConfig>),
}

/// The settings of GPT-2 by the names of its `config.json`; those of training are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gpt2Config {
    /// Tokens V.
    pub vocab_size: u64,
    /// Most tokens of a text.
    #[serde(default = "default::positions")]
    pub n_positions: u64,
    /// Width d.
    pub n_embd: u64,
    /// Layers.
    pub n_layer: u64,
    /// Attention heads.
    pub n_head: u64,
    /// Feed-forward width; unset: 4 d.
    #[serde(default)]
    pub n_inner: Option<u64>,
    /// Activation of the feed-forward part.
    #[serde(default = "default::gelu")]
    pub activation_function: String,
    /// Epsilon of every norm.
    #[serde(default = "default::epsilon")]
    pub layer_norm_epsilon: f64,
    /// Whether the output matrix is the embedding.
    #[serde(default = "default::yes")]
    pub tie_word_embeddings: bool,
    /// Whether scores are divided by the root of a head's width.
    #[serde(default = "default::yes")]
    pub scale_attn_weights: bool,
    /// Whether scores are divided by the layer's number too.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
}

/// The settings of Llama by the names of its `config.json`; those of training are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LlamaConfig {
    /// Tokens V.
    pub vocab_size: u64,
    /// Width d.
    pub hidden_size: u64,
    /// Feed-forward width.
    pub intermediate_size: u64,
    /// Layers.
    pub num_hidden_layers: u64,
    /// Attention heads.
    pub num_attention_heads: u64,
    /// Heads of keys and values; unset: as many as of queries.
    #[serde(default)]
    pub num_key_value_heads: Option<u64>,
    /// Width of a head; unset: d over the heads.
    #[serde(default)]
    pub head_dim: Option<u64>,
    /// Most tokens of a text.
    #[serde(default = "default::llama_positions")]
    pub max_position_embeddings: u64,
    /// Epsilon of every norm.
    #[serde(default = "default::rms_epsilon")]
    pub rms_norm_eps: f64,
    /// Activation of the feed-forward part's gate.
    #[serde(default = "default::silu")]
    pub hidden_act: String,
    /// Whether the maps of attention have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the maps of the feed-forward part have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Whether the output matrix is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Base of the angles; unset: that of `rope_parameters`, or 10,000.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// How the angles are stretched for longer texts.
    #[serde(default)]
    pub rope_scaling: Option<Rope>,
    /// The same as newer versions of the library write it, with the base.
    #[serde(default)]
    pub rope_parameters: Option<Rope>,
}

/// How rotary angles follow from positions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Rope {
    /// `default`, `linear` or `llama3`; unset: `type`, or `default`.
    #[serde(default)]
    pub rope_type: Option<String>,
    /// What older versions of the library call it; some write both.
    #[serde(default, rename = "type")]
    pub older_type: Option<String>,
    /// Base of the angles.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Slow turns are this many times slower.
    #[serde(default)]
    pub factor: Option<f64>,
    /// Turns with fewer rounds than this in the first training's texts are slow.
    #[serde(default)]
    pub low_freq_factor: Option<f64>,
    /// Turns with more rounds than this are left as they are.
    #[serde(default)]
    pub high_freq_factor: Option<f64>,
    /// Most tokens of the first training's texts.
    #[serde(default)]
    pub original_max_position_embeddings: Option<f64>,
}

/// What `config.json` leaves out.
mod default {
    pub(super) fn positions() -> u64 {
        1024
    }

    pub(super) fn llama_positions() -> u64 {
        2048
    }

    pub(super) fn epsilon() -> f64 {
        1e-5
    }

    pub(super) fn rms_epsilon() -> f64 {
        1e-6
    }

    pub(super) fn yes() -> bool {
        true
    }

    pub(super) fn gelu() -> String {
        "gelu_new".to_owned()
    }

    pub(super) fn silu() -> String {
        "silu".to_owned()
    }
}

/// A judge whose `config.json` asks for what is not here.
pub(super) fn refused<T>(key: &str, value: impl std::fmt::Display, known: &str) -> Result<T> {
    Err(Error::Config(format!("the judge's config.json has {key} = {value}, but only {known} is known here")))
}

impl Gpt2Config {
    pub(super) fn curve(&self) -> Result<Curve> {
        match self.activation_function.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Curve::TanhGelu),
            "gelu" => Ok(Curve::ErfGelu),
            "relu" => Ok(Curve::Relu),
            other => refused("activation_function", other, "gelu_new, gelu_pytorch_tanh, gelu or relu"),
        }
    }

    /// What scores of a layer are multiplied with.
    pub(super) fn scale(&self, layer: u64) -> f64 {
        let of_width = if self.scale_attn_weights {
            ((self.n_embd / self.n_head.max(1)) as f64).sqrt().recip()
        } else {
            1.0
        };
        if self.scale_attn_by_inverse_layer_idx { of_width / (layer + 1) as f64 } else { of_width }
    }
}

impl LlamaConfig {
    pub(super) fn check(&self) -> Result<()> {
        if self.hidden_act == "silu" { Ok(()) } else { refused("hidden_act", &self.hidden_act, "silu") }
    }

    /// Turn of each pair of features from one position to the next, in radians: `theta^(-2 i / head width)`, stretched as
    /// `rope_scaling` says (transformers' `modeling_rope_utils`).
    pub(super) fn frequencies(&self, head_width: u64) -> Result<Vec<f64>> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let plain = (0..head_width / 2).map(|i| theta.powf(-2.0 * i as f64 / head_width as f64));
        let Some(rope) = rope else { return Ok(plain.collect()) };
        match rope.rope_type.as_ref().or(rope.older_type.as_ref()).map_or("default", String::as_str) {
            "default" => Ok(plain.collect()),
            "linear" => {
                let factor = given("factor", rope.factor)?;
                Ok(plain.map(|frequency| frequency / factor).collect())
            }
            "llama3" => rope.stretched(plain),
            other => refused("rope_type", other, "default, linear or llama3"),
        }
    }
}

impl Rope {
    /// Slow turns are divided by the factor, fast ones stay, and those between lie between.
    fn stretched(&self, plain: impl Iterator<Item = f64>) -> Result<Vec<f64>> {
        let factor = given("factor", self.factor)?;
        let (low, high) = (
            given("low_freq_factor", self.low_freq_factor)?,
            given("high_freq_factor", self.high_freq_factor)?,
        );
        let tokens = given("original_max_position_embeddings", self.original_max_position_embeddings)?;
        let stretch = |frequency: f64| {
            let rounds = tokens * frequency / std::f64::consts::TAU;
            let kept = ((rounds - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        };
        Ok(plain.map(stretch).collect())
    }
}

fn given(key: &str, value: Option<f64>) -> Result<f64> {
    value.ok_or_else(|| Error::Config(format!("the judge's config.json lacks {key} of its rope_scaling")))
}
