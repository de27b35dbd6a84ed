//! Model weights in the form that the Python reference publishes and loads.
//!
//! A weights folder holds `model.safetensors` (the state dict) and `config.json` (the constructor's arguments).
//! Reading: [`WeightsFile::open`], then [`WeightsFile::config`] and [`WeightsFile::architecture`] say which model it
//! is, and [`WeightsFile::read_into`] fills the flat arena of such a model. Writing: [`ReferenceConfig::of`] and
//! [`write_weights`].
//!
//! State dicts saved by a training harness carry prefixes and stale entries; [`WeightsFile`] sees through them and
//! says what it left out. The bytes are described in `FORMAT.md`.

mod class;
mod config;
mod convert;
mod describe;
mod error;
mod file;
mod header;
mod index;
mod keys;
mod matching;
mod parameters;
mod read;
mod resolve;
mod rotary;
mod write;

pub use class::{Family, Head, ReferenceClass};
pub use config::{Activation, ReferenceConfig};
pub use describe::Description;
pub use error::WeightsError;
pub use file::{StoredTensor, WeightsFile};
pub use matching::{Differences, ShapeDifference};
pub use resolve::Architecture;
pub use rotary::inverse_frequencies;
pub use write::{RotaryBuffers, write_weights};

/// The state dict within a weights folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Names the files of a state dict that was cut into several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The constructor's arguments within a weights folder.
pub const CONFIG_FILE: &str = "config.json";
