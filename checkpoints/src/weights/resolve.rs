//! From tensors and arguments to one model, or to the sentence in which they contradict each other.

use std::fmt::Display;
use std::path::Path;

use super::class::{Family, Head, ReferenceClass};
use super::config::{Activation, ReferenceConfig};
use super::describe::Description;
use super::error::WeightsError;
use super::file::WeightsFile;
use crate::error::Result;

/// Everything that fixes a model of the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The reference's class.
    pub class: ReferenceClass,
    /// Vocabulary size V, special tokens included.
    pub num_embeddings: u64,
    /// Model width d.
    pub d_model: u64,
    /// Layers.
    pub num_layers: u64,
    /// Attention heads.
    pub nhead: u64,
    /// Feed-forward width F.
    pub dim_feedforward: u64,
    /// Largest position (rotary), number of positions (GPT-2).
    pub max_length: u64,
    /// Rotated features per head; `None` for GPT-2.
    pub rotary_emb_dim: Option<u64>,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Dropout probability.
    pub dropout: f64,
    /// Id of the padding token.
    pub padding_idx: u64,
    /// Id of the mask token, which the models do not use.
    pub mask_idx: u64,
    /// Whether a norm precedes the output matrix.
    pub final_norm: bool,
    /// Classes of the head that reads the CLS position, if there is one.
    pub num_classes: Option<u64>,
}

impl WeightsFile {
    /// What tensors and arguments together say about the model; pass `ReferenceConfig::default()` with only `nhead`
    /// set for weights without a `config.json`.
    ///
    /// # Errors
    /// As [`WeightsFile::describe`]; [`WeightsError::Contradiction`], [`WeightsError::UnknownClass`] or
    /// [`WeightsError::MissingArgument`] for arguments that do not belong to these tensors.
    pub fn architecture(&self, config: &ReferenceConfig) -> Result<Architecture> {
        Ok(config.resolve(self.path(), &self.describe()?)?)
    }
}

/// A value of `config.json` against what the tensors show.
struct Judge<'a> {
    path: &'a Path,
}

impl Judge<'_> {
    fn contradiction(&self, key: &'static str, config: impl Display, tensors: impl Display) -> WeightsError {
        let (config, tensors) = (config.to_string(), tensors.to_string());
        WeightsError::Contradiction { path: self.path.into(), key, config, tensors }
    }

    /// The tensors' value, unless the arguments give another one.
    fn agreed<T: PartialEq + Display>(
        &self,
        key: &'static str,
        config: Option<T>,
        tensors: T,
    ) -> Result<T, WeightsError> {
        match config {
            Some(config) if config != tensors => Err(self.contradiction(key, config, tensors)),
            _ => Ok(tensors),
        }
    }
}

impl ReferenceConfig {
    /// Tensors decide whatever they show; arguments must agree with them and give the rest, or else the reference's
    /// defaults do.
    pub(super) fn resolve(&self, path: &Path, found: &Description) -> Result<Architecture, WeightsError> {
        let judge = Judge { path };
        let class = self.class(&judge, found)?;
        let agreed = |key, config, tensors| judge.agreed(key, config, tensors);
        let rotary = class.family() == Family::Rotary;
        let missing = || WeightsError::MissingArgument { path: path.into(), key: "nhead" };
        Ok(Architecture {
            class,
            num_embeddings: agreed("num_embeddings", self.num_embeddings, found.num_embeddings)?,
            d_model: agreed("d_model", self.d_model, found.d_model)?,
            num_layers: agreed("num_layers", self.num_layers, found.num_layers)?,
            nhead: self.nhead.ok_or_else(missing)?,
            // The reference takes 0 for its default.
            dim_feedforward: agreed(
                "dim_feedforward",
                self.dim_feedforward.filter(|&f| f != 0),
                found.dim_feedforward,
            )?,
            max_length: match found.max_length {
                Some(rows) => agreed("max_length", self.max_length, rows)?,
                None => self.max_length.unwrap_or(1024),
            },
            rotary_emb_dim: if rotary { Some(self.rotary_dim(&judge, found)?) } else { None },
            activation: self.activation.unwrap_or(if rotary { Activation::Relu } else { Activation::Gelu }),
            layer_norm_eps: self.layer_norm_eps.filter(|_| rotary).unwrap_or(1e-5),
            dropout: self.dropout.unwrap_or(0.1),
            padding_idx: self.padding_idx.unwrap_or(0),
            mask_idx: self.mask_idx.unwrap_or(1),
            final_norm: self.final_norm(&judge, class, found)?,
            num_classes: self.classes(&judge, class, found)?,
        })
    }

    /// The class that the file names, or else the one that arguments and tensors point to.
    fn class(&self, judge: &Judge<'_>, found: &Description) -> Result<ReferenceClass, WeightsError> {
        let family = found.family;
        let Some(target) = &self.target else {
            let head = match found.num_classes {
                None => Head::None,
                // Only the length classes have this argument, and only they have classes by default.
                Some(_) if self.special_final_layer.is_some() => Head::Length,
                Some(_) if self.num_classes.is_some() => Head::Classes,
                Some(2) => Head::Stopping,
                Some(classes) if self.max_length == Some(classes) => Head::Length,
                Some(_) => Head::Classes,
            };
            return Ok(ReferenceClass::new(family, head));
        };
        let class = ReferenceClass::from_target(target).ok_or_else(|| WeightsError::UnknownClass {
            path: judge.path.into(),
            class: target.clone(),
            known: ReferenceClass::ALL.map(ReferenceClass::name).join(", "),
        })?;
        if class.family() != family {
            let embedding = format!("'{}'", family.names().embedding);
            return Err(judge.contradiction("_target_", target, embedding));
        }
        let headless = class.head() == Head::None;
        match (headless, found.num_classes) {
            (true, Some(classes)) => {
                Err(judge.contradiction("_target_", target, format!("a head of {classes} classes")))
            }
            (false, None) => Err(judge.contradiction("_target_", target, "no class head")),
            _ => Ok(class),
        }
    }

    /// The number of classes must be the one with which the class would be constructed.
    fn classes(
        &self,
        judge: &Judge<'_>,
        class: ReferenceClass,
        found: &Description,
    ) -> Result<Option<u64>, WeightsError> {
        let Some(classes) = found.num_classes else {
            return match self.num_classes {
                Some(config) => Err(judge.contradiction("num_classes", config, "no class head")),
                None => Ok(None),
            };
        };
        let (key, config) = match class.head() {
            Head::Stopping => ("num_classes", Some(2)),
            Head::Length if self.num_classes.is_none() => ("max_length", self.max_length),
            _ => ("num_classes", self.num_classes),
        };
        match config {
            Some(config) if config != classes => {
                Err(judge.contradiction(key, config, format!("{classes} classes")))
            }
            _ => Ok(found.num_classes),
        }
    }

    fn final_norm(
        &self,
        judge: &Judge<'_>,
        class: ReferenceClass,
        found: &Description,
    ) -> Result<bool, WeightsError> {
        let (key, without) = self.without_norm(class);
        match without {
            Some(without) if without == found.final_norm => {
                let tensors = if found.final_norm { "a final norm" } else { "no final norm" };
                Err(judge.contradiction(key, without, tensors))
            }
            _ => Ok(found.final_norm),
        }
    }

    /// Half the rotary dimension, rounded up, is stored; an odd dimension can only come from the arguments.
    fn rotary_dim(&self, judge: &Judge<'_>, found: &Description) -> Result<u64, WeightsError> {
        match (self.rotary_emb_dim, found.frequencies) {
            (Some(config), Some(stored)) if config.div_ceil(2) != stored => {
                Err(judge.contradiction("rotary_emb_dim", config, format!("{stored} frequencies")))
            }
            (Some(config), _) => Ok(config),
            (None, Some(stored)) => Ok(stored.saturating_mul(2)),
            (None, None) => Ok(64),
        }
    }
}
