//! Section `checkpoint` of the configuration.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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

impl CheckpointConfig {
    /// Checks the ranges of all settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first setting that is too small.
    pub fn validate(&self) -> Result<()> {
        let at_least = |key, value, least| {
            if value < least { Err(Error::Config { key, value, least }) } else { Ok(()) }
        };
        at_least("every_n_steps", self.every_n_steps, 1)?;
        at_least("keep_last", self.keep_last as u64, 2)?;
        at_least("keep_every", self.keep_every.unwrap_or(1), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_lose_checkpoints_are_refused() {
        assert!(CheckpointConfig::default().validate().is_ok());
        for (config, sentence) in [
            (
                CheckpointConfig { keep_last: 1, ..Default::default() },
                "checkpoint.keep_last = 1 is too small; use at least 2",
            ),
            (
                CheckpointConfig { keep_every: Some(0), ..Default::default() },
                "checkpoint.keep_every = 0 is too small; use at least 1",
            ),
            (
                CheckpointConfig { every_n_steps: 0, ..Default::default() },
                "checkpoint.every_n_steps = 0 is too small; use at least 1",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), sentence);
        }
    }
}
