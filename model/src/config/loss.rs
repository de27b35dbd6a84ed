//! Section `loss` of the configuration.

use serde::{Deserialize, Serialize};

use super::{HeadKind, ModelConfig};
use crate::error::{Error, Result};

/// Section `loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// What the head on CLS is trained for.
    pub length_loss: LengthLoss,
    /// Weight of the head's loss, in [0, 1].
    pub length_loss_weight: f64,
    /// Weight s of the class "complete"; "tokens missing" gets 1 - s. None weighs both 1. Only with "binary_ce".
    pub stopping_class_weight: Option<f64>,
    /// The reference's option to train padding positions, which it refuses when true, as here.
    pub loss_on_padding: bool,
    /// The reference's option to mask the loss by constraints, which it refuses when true, as here.
    pub use_constraint: bool,
    /// The reference's option to feed constraints to the model, which it refuses when true, as here.
    pub input_constraint: bool,
    /// MiB of logits that are alive at once; examples are taken in groups that fit. None is 64 on a host, whose caches like small
    /// groups, and 1024 on a GPU, which likes large products.
    pub head_budget_mib: Option<usize>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            length_loss: LengthLoss::BinaryCe,
            length_loss_weight: 1.0,
            stopping_class_weight: None,
            loss_on_padding: false,
            use_constraint: false,
            input_constraint: false,
            head_budget_mib: None,
        }
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
                return fail(format!("loss.{key} = {value} must lie in [0, 1]"));
            }
        }
        if self.stopping_class_weight.is_some() && self.length_loss != LengthLoss::BinaryCe {
            return fail(
                "loss.stopping_class_weight has a meaning only with loss.length_loss = \"binary_ce\"".into(),
            );
        }
        let refused = [
            ("loss_on_padding", self.loss_on_padding),
            ("use_constraint", self.use_constraint),
            ("input_constraint", self.input_constraint),
        ];
        if let Some((key, _)) = refused.iter().find(|(_, is_set)| *is_set) {
            return fail(format!(
                "loss.{key} = true is not supported, nor is it by the reference; leave it false"
            ));
        }
        if self.head_budget_mib == Some(0) {
            return fail("loss.head_budget_mib = 0 must be at least 1".into());
        }
        Ok(())
    }

    /// Checks the ranges, and that the model has the head that the loss trains.
    ///
    /// # Errors
    /// One sentence with both settings and what would do.
    pub fn validate_for(&self, model: &ModelConfig) -> Result<()> {
        self.validate()?;
        let (class, head) = (model.class.key(), model.class.head());
        match (self.length_loss, head) {
            (LengthLoss::None, _)
            | (LengthLoss::BinaryCe, HeadKind::Stopping)
            | (LengthLoss::Ce, HeadKind::Length | HeadKind::Classification) => Ok(()),
            (LengthLoss::BinaryCe, HeadKind::Classification) if model.num_classes == Some(2) => Ok(()),
            (LengthLoss::BinaryCe, HeadKind::Length | HeadKind::Classification) => fail(format!(
                "loss.length_loss = \"binary_ce\" needs a head of 2 classes, which model.class = \"{class}\" has not; use \
                 loss.length_loss=ce or a stopping model"
            )),
            (LengthLoss::Ce, HeadKind::Stopping) => fail(format!(
                "loss.length_loss = \"ce\" counts missing tokens, which the head of model.class = \"{class}\" cannot; use \
                 loss.length_loss=binary_ce or a length model"
            )),
            (_, HeadKind::None) => fail(format!(
                "loss.length_loss trains a head, but model.class = \"{class}\" has none; use loss.length_loss=none or a \
                 model with a head"
            )),
        }
    }

    /// Bytes of logits that are alive at once.
    pub fn head_budget(&self, on_gpu: bool) -> usize {
        let default = if on_gpu { 1024 } else { 64 };
        self.head_budget_mib.unwrap_or(default).saturating_mul(1 << 20)
    }

    /// Class of an example that lacks `drops` tokens, and its weight; none if the head is not trained.
    pub(crate) fn class_of(&self, drops: i64) -> Option<(usize, f64)> {
        match self.length_loss {
            LengthLoss::None => None,
            LengthLoss::Ce => Some((drops as usize, self.length_loss_weight)),
            LengthLoss::BinaryCe => {
                let class = usize::from(drops > 0);
                let weights = self.stopping_class_weight.map_or([1.0, 1.0], |weight| [weight, 1.0 - weight]);
                Some((class, self.length_loss_weight * weights[class]))
            }
        }
    }
}

fn fail(message: String) -> Result<()> {
    Err(Error::Config(message))
}

/// What the head on CLS is trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthLoss {
    /// Nothing.
    None,
    /// The number of missing tokens.
    Ce,
    /// Whether tokens are missing.
    BinaryCe,
}
