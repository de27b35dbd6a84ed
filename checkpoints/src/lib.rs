//! Sharded checkpoints on disk: written whole or not at all, verified on every read.
//!
//! A save is four steps. Rank 0 calls [`Store::begin`]; then every rank calls [`write_shard`] with its own slices;
//! the [`ShardRecord`]s travel to rank 0, which calls [`Store::commit`] and [`Store::prune`]. With a
//! [`BackgroundWriter`] and a [`BackgroundCommit`] training stands still only while slices are copied. At start rank 0 calls
//! [`Store::remove_stale`] and [`Store::newest_valid`]; every other rank opens the chosen step with [`Store::get`]
//! and reads the ranges it needs, whatever the number of ranks that wrote them. The bytes are described in
//! `FORMAT.md`.
//!
//! Weights travel to and from the Python reference by module [`weights`].
//!
//! The crate knows nothing of tensors or of message passing: it moves `f32` slices of a flat arena.

#![forbid(unsafe_code)]

mod background;
pub mod config;
mod disk;
mod error;
mod inspect;
mod layout;
mod manifest;
mod metrics;
mod parallel;
mod read;
mod retention;
mod store;
#[cfg(test)]
mod testing;
pub mod weights;
mod write;

pub use background::{BackgroundCommit, BackgroundWriter, Commit, Committed, SaveTimings, Written};
pub use config::{CheckpointConfig, Mode};
pub use error::{Error, Result};
pub use inspect::{Depth, Entry};
pub use layout::{Layout, TensorEntry};
pub use manifest::{RunState, SectionRecord, ShardRecord};
pub use metrics::Metrics;
pub use read::Checkpoint;
pub use store::{Found, Staging, Store};
pub use write::{Section, write_shard};
