//! The reference's parameter names and shapes, as tables.

use std::collections::BTreeMap;

use super::class::Family;
use super::describe::Description;

/// A size that the model's settings fix.
#[derive(Debug, Clone, Copy)]
enum Size {
    /// Vocabulary.
    V,
    /// Positions.
    P,
    /// Classes.
    C,
    /// Feed-forward width.
    F,
    /// Model width.
    D,
    /// Twice the model width.
    D2,
    /// Three times the model width.
    D3,
}
use Size::{C, D, D2, D3, F, P, V};

type Table = &'static [(&'static str, &'static [Size])];

/// What the parameters of a family are called. The last four name tensors by which a model is measured.
pub(super) struct Names {
    outside: Table,
    norm: Table,
    layer: Table,
    /// Prefix of a layer, before its number.
    pub(super) layers: &'static str,
    pub(super) embedding: &'static str,
    pub(super) final_norm: &'static str,
    pub(super) output: &'static str,
    /// Within a layer.
    pub(super) widening: &'static str,
}

static ROTARY: Names = Names {
    outside: &[("embed_tokens.weight", &[V, D]), ("output_layer.linear.weight", &[V, D])],
    norm: &[("output_layer.norm_final.weight", &[D]), ("output_layer.norm_final.bias", &[D])],
    layer: &[
        ("norm1.weight", &[D]),
        ("norm1.bias", &[D]),
        ("attn_qkv.weight", &[D3, D]),
        ("o_proj.weight", &[D, D]),
        ("norm2.weight", &[D]),
        ("norm2.bias", &[D]),
        ("mlp.0.weight", &[F, D]),
        ("mlp.0.bias", &[F]),
        ("mlp.2.weight", &[D, F]),
        ("mlp.2.bias", &[D]),
    ],
    layers: "encoder.",
    embedding: "embed_tokens.weight",
    final_norm: "output_layer.norm_final.weight",
    output: "output_layer.linear.weight",
    widening: "mlp.0.weight",
};

static GPT2: Names = Names {
    outside: &[("transformer.wte.weight", &[V, D]), (POSITIONS, &[P, D]), ("lm_head.weight", &[V, D])],
    norm: &[("transformer.ln_f.weight", &[D])],
    layer: &[
        ("ln_1.weight", &[D]),
        ("attn.c_attn.weight", &[D3, D]),
        ("attn.c_proj.weight", &[D, D]),
        ("ln_2.weight", &[D]),
        ("mlp.c_fc.weight", &[F, D]),
        ("mlp.c_proj.weight", &[D, F]),
    ],
    layers: "transformer.h.",
    embedding: "transformer.wte.weight",
    final_norm: "transformer.ln_f.weight",
    output: "lm_head.weight",
    widening: "mlp.c_fc.weight",
};

/// The learned positions of GPT-2.
pub(super) const POSITIONS: &str = "transformer.wpe.weight";
/// The last matrix of the class head, of both families.
pub(super) const CLASSES: &str = "length_output_layer.linear.weight";

const HEAD: Table = &[
    ("length_output_layer.norm_final.weight", &[D]),
    ("length_output_layer.norm_final.bias", &[D]),
    ("length_output_layer.mlp.0.weight", &[D2, D]),
    ("length_output_layer.mlp.0.bias", &[D2]),
    ("length_output_layer.mlp.2.weight", &[D, D2]),
    ("length_output_layer.mlp.2.bias", &[D]),
    (CLASSES, &[C, D]),
];

impl Family {
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Rotary => &ROTARY,
            Self::Gpt2 => &GPT2,
        }
    }
}

impl Description {
    /// All parameters of such a model with their shapes; matrices are (out, in).
    pub fn parameters(&self) -> BTreeMap<String, Vec<u64>> {
        let names = self.family.names();
        let mut parameters = BTreeMap::new();
        let mut add = |prefix: &str, table: Table| {
            for (name, shape) in table {
                parameters
                    .insert(format!("{prefix}{name}"), shape.iter().map(|size| self.size(*size)).collect());
            }
        };
        add("", names.outside);
        if self.final_norm {
            add("", names.norm);
        }
        for i in 0..self.num_layers {
            add(&format!("{}{i}.", names.layers), names.layer);
        }
        if self.num_classes.is_some() {
            add("", HEAD);
        }
        parameters
    }

    fn size(&self, size: Size) -> u64 {
        match size {
            V => self.num_embeddings,
            P => self.max_length.unwrap_or(0),
            C => self.num_classes.unwrap_or(0),
            F => self.dim_feedforward,
            D => self.d_model,
            D2 => self.d_model.saturating_mul(2),
            D3 => self.d_model.saturating_mul(3),
        }
    }
}
