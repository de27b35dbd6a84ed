//! Section `checkpoint` of the configuration.

use serde::{Deserialize, Serialize};

/// Section `checkpoint`: when to save and what to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Save after every so many optimizer steps (and at the end, and when told to stop).
    pub every_n_steps: u64,
    /// The newest ones to keep; at least 2.
    pub keep_last: usize,
    /// Keep every checkpoint whose step is a multiple of this for ever.
    pub keep_every: Option<u64>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_n_steps: 500, keep_last: 2, keep_every: None }
    }
}
