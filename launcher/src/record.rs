//! What the launcher writes about its own run: `RUN/launcher.json`, replaced as a whole.

use crate::error::{Error, Result};
use crate::heartbeat::unix_ms;
use crate::outcome::Outcome;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The last launch that trained in a run directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The worker's arguments.
    pub arguments: Vec<String>,
    /// Number of ranks.
    pub ranks: usize,
    /// The launcher's host.
    pub host: String,
    /// The launcher's process number there.
    pub pid: u32,
    /// When the last attempt was started, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Restarts so far.
    pub restarts: u32,
    /// How the last attempt that ended did so; empty while the first one runs.
    pub end: Option<End>,
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The launcher's exit code for it.
    pub exit_code: u8,
    /// The same as a sentence.
    pub reason: String,
}

impl End {
    /// An end at this moment.
    pub fn now(outcome: Outcome) -> Self {
        Self { unix_ms: unix_ms(SystemTime::now()), exit_code: outcome.code(), reason: outcome.to_string() }
    }
}

impl Record {
    /// Writes it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        let path = path(run_dir);
        let staged = run_dir.join(".launcher.json.tmp");
        let text = serde_json::to_string(self).map_err(Error::io("write", &path))?;
        fs::write(&staged, text + "\n").map_err(Error::io("write", &staged))?;
        fs::rename(&staged, &path).map_err(Error::io("write", &path))
    }

    /// Reads it; `None` if there is none that can be read.
    pub fn read(run_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(run_dir)).ok()?).ok()
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("launcher.json")
}
