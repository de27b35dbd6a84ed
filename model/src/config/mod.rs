//! Sections `model`, `loss` and `predictor` of the configuration, and the rules their values obey.

mod class;
mod loss;
mod model;
mod predictor;

pub use class::{Family, HeadKind, ModelClass};
pub use loss::{LengthLoss, LossConfig};
pub use model::{Activation, ModelConfig, ModelShape, Precision, Recompute};
pub use predictor::{PredictorConfig, SamplingMethod};
