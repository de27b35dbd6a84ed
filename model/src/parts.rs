//! What the families call their parts, and which of them have biases: the state-dict keys of the reference.

use crate::config::{Family, ModelClass};
use crate::ops::activation::Curve;

/// Names and shapes that differ between the families.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Prefix of a block, before its number.
    blocks: &'static str,
    pub(crate) norm1: &'static str,
    /// Queries, keys and values in one matrix.
    pub(crate) qkv: &'static str,
    /// The attention's output.
    pub(crate) project: &'static str,
    pub(crate) norm2: &'static str,
    /// The feed-forward part's first matrix.
    pub(crate) widen: &'static str,
    /// Its second.
    pub(crate) narrow: &'static str,
    /// Whether norms and the feed-forward part have biases.
    pub(crate) biased: bool,
    /// Which GELU.
    pub(crate) gelu: Curve,
    pub(crate) final_norm: &'static str,
    /// Hidden states to token logits.
    pub(crate) output: &'static str,
}

/// The same for both.
pub(crate) const HEAD: &str = "length_output_layer";

static ROTARY: Parts = Parts {
    blocks: "encoder",
    norm1: "norm1",
    qkv: "attn_qkv",
    project: "o_proj",
    norm2: "norm2",
    widen: "mlp.0",
    narrow: "mlp.2",
    biased: true,
    gelu: Curve::TanhGelu,
    final_norm: "output_layer.norm_final",
    output: "output_layer.linear",
};

static GPT2: Parts = Parts {
    blocks: "transformer.h",
    norm1: "ln_1",
    qkv: "attn.c_attn",
    project: "attn.c_proj",
    norm2: "ln_2",
    widen: "mlp.c_fc",
    narrow: "mlp.c_proj",
    biased: false,
    gelu: Curve::ErfGelu,
    final_norm: "transformer.ln_f",
    output: "lm_head",
};

impl Parts {
    pub(crate) fn of(class: ModelClass) -> &'static Self {
        match class.family() {
            Family::Rotary => &ROTARY,
            Family::Gpt2 => &GPT2,
        }
    }

    /// Full name of a part of block `index`.
    pub(crate) fn in_block(&self, index: i64, part: &str) -> String {
        format!("{}.{index}.{part}", self.blocks)
    }
}
