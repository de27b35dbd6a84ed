//! One tree of settings, composed from defaults, TOML files and the command line, each value with its origin.
//!
//! Lowest first, the layers are: the defaults of the structs, the chosen `model` and `data` files, the experiment
//! files from the base to the one that was asked for, the command line. Files come from the folder `configs/` of
//! this repository, which is embedded, and from a folder of the user's.

mod compose;
mod error;
mod graphs;
mod library;
mod overrides;
mod schema;
mod show;
mod tree;
pub mod validate;

pub use compose::{Resolved, ResolvedValue, list_experiments, load, load_alone, load_hardware, load_run};
pub use error::ConfigError;
pub use tree::{DeviceChoice, Experiment, LrSchedulerConfig, OptimizerConfig, Schedule, TrainerConfig};
