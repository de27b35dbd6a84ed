//! The insertion language model: parameters, forward, loss with gradients, prediction.
//!
//! Everything runs on packed rows: a batch of B rows with N visible tokens in all is a buffer of N vectors, and no
//! padding is computed on outside attention. Parameters and gradients are two flat buffers ([`Arena`]) in a fixed order
//! ([`ParamLayout`]), so that a gradient bucket, an optimizer shard and a checkpoint slice are ranges.

mod arena;
mod attention;
mod backbone;
mod batch;
#[cfg(test)]
mod chi_square;
pub mod config;
mod dropout;
mod error;
mod gemm;
mod head;
mod init;
mod layers;
mod layout;
mod loss;
pub mod metrics;
pub mod nn;
mod plan;
mod predict;
mod random;
mod rotary;
pub mod sample;
mod step;

pub use arena::Arena;
pub use batch::Batch;
pub use config::{
    Activation, LossConfig, ModelConfig, ModelShape, Precision, PredictorConfig, SamplingMethod,
};
pub use error::{Error, Result};
pub use layout::{ALIGNMENT, ParamEntry, ParamLayout};
pub use predict::{Insertion, Prediction, Predictor, Prompt};
pub use step::{LossParts, StoppingModel};
