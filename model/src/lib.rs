//! The insertion language model: parameters, forward, loss with gradients, prediction.
//!
//! Everything runs on packed rows: a batch of B rows with N visible tokens in all is a buffer of N vectors, and no
//! padding is computed on outside attention. Parameters and gradients are two flat buffers ([`Arena`]) in a fixed order
//! ([`ParamLayout`]), so that a gradient bucket, an optimizer shard and a checkpoint slice are ranges.

// Unit tests share batches and models with the tests in `tests`, which know the crate by its name.
#[cfg(test)]
extern crate self as ilm_model;

mod activations;
mod arena;
mod backbone;
mod batch;
mod bucket;
#[cfg(test)]
mod chi_square;
pub mod config;
mod dense;
mod dropout;
#[cfg(test)]
mod elsewhere_tests;
mod error;
mod flat;
mod gemm;
mod head;
mod init;
pub mod judge;
mod kernels;
mod layers;
mod layout;
mod loss;
mod measure;
pub mod metrics;
mod model;
mod native;
pub mod nn;
mod objective;
mod ops;
pub mod parallel;
mod parts;
mod plan;
mod predict;
mod random;
mod round;
pub mod sample;
#[cfg(test)]
mod testing;
mod turns;
mod upload;

pub use activations::activation_bytes_per_token;
pub use arena::{Arena, UpdateParts};
pub use batch::Batch;
pub use config::{
    Activation, Family, HeadKind, LengthLoss, LossConfig, ModelClass, ModelConfig, ModelShape, Precision,
    PredictorConfig, Recompute, SamplingMethod,
};
pub use dense::{AttentionMask, DenseBatch, DenseOutput};
pub use error::{Error, Result};
pub use flat::{Element, Flat};
pub use head::expected_length;
pub use layout::{ALIGNMENT, ParamEntry, ParamLayout};
pub use measure::{LinearMap, Rows};
pub use model::Model;
pub use native::use_repeatable_kernels;
pub use objective::{LossParts, Traffic};
pub use predict::{HistoryEntry, Insertion, Prediction, Predictor, Prompt, SpecialIds};
pub use round::round;
