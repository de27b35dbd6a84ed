//! `config.json`: the arguments with which the reference constructs a model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CONFIG_FILE;
use super::class::{Family, Head, ReferenceClass};
use super::error::WeightsError;
use super::file::WeightsFile;
use super::resolve::Architecture;
use crate::disk::read_bounded;
use crate::error::Result;

/// Far above any list of arguments.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Activation of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The positive part.
    Relu,
    /// GELU: by its tanh approximation in the rotary family, exact in GPT-2.
    Gelu,
}

/// The constructor's arguments. What a file leaves out or sets to null is `None`, which stands for the reference's
/// default; [`WeightsFile::architecture`] fills the defaults in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReferenceConfig {
    /// Dotted path of the class; only harnesses write it.
    #[serde(rename = "_target_", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Vocabulary size V, special tokens included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_embeddings: Option<u64>,
    /// Model width d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_model: Option<u64>,
    /// Layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_layers: Option<u64>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nhead: Option<u64>,
    /// Classes of the head, where the class has the argument.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<u64>,
    /// Id of the padding token; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding_idx: Option<u64>,
    /// Id of the mask token, which the models do not use; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_idx: Option<u64>,
    /// Feed-forward width; default 4 d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim_feedforward: Option<u64>,
    /// Dropout probability; default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Activation; default ReLU in the rotary family, GELU in GPT-2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Epsilon of the norms (rotary only); default 1e-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_norm_eps: Option<f64>,
    /// Rotated features per head (rotary only); default 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_emb_dim: Option<u64>,
    /// Largest position (rotary), number of positions (GPT-2); default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
    /// Of the length classes, which pass it on by position: in the rotary family it ends up as `force_flash_attn`,
    /// in GPT-2 as `final_layer_without_normalization`. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub special_final_layer: Option<bool>,
    /// Flash attention or failure, without effect on the weights; but in the rotary length class it ends up as
    /// `final_layer_without_normalization`. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_flash_attn: Option<bool>,
    /// True leaves the norm before the output matrix out; the length classes do not have it. Default true, but false
    /// in the GPT-2 classes with a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_layer_without_normalization: Option<bool>,
    /// Whatever else the file holds.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl WeightsFile {
    /// The constructor's arguments from `config.json` beside the weights; `None` if there is no such file.
    ///
    /// # Errors
    /// [`WeightsError::BadConfig`], otherwise the failure of the disk.
    pub fn config(&self) -> Result<Option<ReferenceConfig>> {
        let path = self.path().with_file_name(CONFIG_FILE);
        let bad = |what| WeightsError::BadConfig { path: path.clone(), what };
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_CONFIG_BYTES)?.map_err(bad)?;
        Ok(Some(serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?))
    }
}

impl ReferenceConfig {
    /// The arguments with which the reference constructs this model: those that its class has, and no other.
    pub fn of(model: &Architecture) -> Self {
        let (family, head) = (model.class.family(), model.class.head());
        let rotary = family == Family::Rotary;
        let mut config = Self {
            target: Some(model.class.target()),
            num_embeddings: Some(model.num_embeddings),
            d_model: Some(model.d_model),
            num_layers: Some(model.num_layers),
            nhead: Some(model.nhead),
            num_classes: model.num_classes.filter(|_| matches!(head, Head::Classes | Head::Length)),
            padding_idx: Some(model.padding_idx),
            mask_idx: Some(model.mask_idx),
            dim_feedforward: Some(model.dim_feedforward),
            dropout: Some(model.dropout),
            activation: Some(model.activation),
            layer_norm_eps: rotary.then_some(model.layer_norm_eps),
            rotary_emb_dim: model.rotary_emb_dim.filter(|_| rotary),
            max_length: Some(model.max_length),
            ..Self::default()
        };
        let without_norm = Some(!model.final_norm);
        match (family, head) {
            // Forced flash attention would refuse every mask, and here this argument forces it.
            (Family::Rotary, Head::Length) => {
                config.special_final_layer = Some(false);
                config.force_flash_attn = without_norm;
            }
            (Family::Gpt2, Head::Length) => config.special_final_layer = without_norm,
            _ => config.final_layer_without_normalization = without_norm,
        }
        config
    }

    /// Whether the class leaves the final norm out, by the argument that decides it there; `None` where the file
    /// does not say.
    pub(super) fn without_norm(&self, class: ReferenceClass) -> (&'static str, Option<bool>) {
        match (class.family(), class.head()) {
            (Family::Rotary, Head::Length) => ("force_flash_attn", self.force_flash_attn),
            (Family::Gpt2, Head::Length) => ("special_final_layer", self.special_final_layer),
            _ => ("final_layer_without_normalization", self.final_layer_without_normalization),
        }
    }
}
