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
    /// Keep so many of those with the best values of `monitor`, besides the newest ones.
    pub keep_best: usize,
    /// The figure of the validation that is recorded with a checkpoint and says which are the best; if it is set, every validated
    /// step is saved.
    pub monitor: Option<String>,
    /// Which values of `monitor` are better.
    pub mode: Mode,
    /// Train on while a copy of the state is being written. Takes as much memory as a rank's part of a checkpoint.
    pub asynchronous: bool,
}

/// Which of two values of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The smaller one, as of a loss.
    #[default]
    Min,
    /// The larger one, as of an accuracy.
    Max,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_n_steps: 500,
            keep_last: 2,
            keep_every: None,
            keep_best: 0,
            monitor: None,
            mode: Mode::Min,
            asynchronous: true,
        }
    }
}

impl CheckpointConfig {
    /// Checks the ranges of all settings.
    ///
    /// # Errors
    /// [`Error::Config`] for the first setting that is too small, [`Error::NoMonitor`] for `keep_best` without a
    /// figure.
    pub fn validate(&self) -> Result<()> {
        let at_least = |key, value, least| {
            if value < least { Err(Error::Config { key, value, least }) } else { Ok(()) }
        };
        at_least("every_n_steps", self.every_n_steps, 1)?;
        at_least("keep_last", self.keep_last as u64, 2)?;
        at_least("keep_every", self.keep_every.unwrap_or(1), 1)?;
        match self.keep_best {
            keep_best if keep_best > 0 && self.monitor.is_none() => Err(Error::NoMonitor { keep_best }),
            _ => Ok(()),
        }
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
            (
                CheckpointConfig { keep_best: 2, ..Default::default() },
                "checkpoint.keep_best = 2 needs checkpoint.monitor, the name of a figure of the validation (for \
                 example \"loss\"); set it, or set checkpoint.keep_best = 0",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), sentence);
        }
    }
}
