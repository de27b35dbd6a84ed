//! The lock of a checkpoint directory: one process holds it, and its end releases it, however it ends.
//!
//! The lock is the kernel's (`flock` on `.lock`), so a crash leaves none behind. The file also names its holder, for
//! the sentence that refuses a second run and for file systems that have no locks.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::read_bounded;
use crate::error::{Error, Result};

const LOCK: &str = ".lock";
/// A larger file was not written by this module.
const MAX_BYTES: u64 = 4096;

/// The process that writes checkpoints to a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// When the process was started, in ticks since its machine was: a number of a process may be used again.
    started: Option<u64>,
}

/// Makes this process the one that writes to `dir`, which exists, until the file is dropped.
pub(crate) fn take(dir: &Path) -> Result<File> {
    take_with(dir, &Holder::this(), File::try_lock)
}

fn take_with(
    dir: &Path,
    this: &Holder,
    try_lock: impl FnOnce(&File) -> Result<(), TryLockError>,
) -> Result<File> {
    let path = dir.join(LOCK);
    let opened = File::options().create(true).append(true).open(&path);
    let mut file = opened.map_err(|e| Error::io("write", &path, e))?;
    let holder = Holder::read(&path);
    let refused = || Error::Locked {
        path: dir.to_path_buf(),
        holder: holder.as_ref().map_or("unknown".into(), |other| format!("{} on {}", other.pid, other.host)),
    };
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(refused()),
        // Network file systems mounted without a lock service: only processes of this machine can be told apart.
        Err(TryLockError::Error(_)) if holder.as_ref().is_some_and(|other| other.runs_beside(this)) => {
            return Err(refused());
        }
        Err(TryLockError::Error(e)) => {
            tracing::warn!(
                "{} cannot be locked: {e}; take care that no second run writes there",
                path.display()
            );
        }
    }
    let named = file.set_len(0).and_then(|()| file.write_all(serde_json::to_string(this)?.as_bytes()));
    if let Err(e) = named {
        // A full disk must not keep a person from removing checkpoints.
        tracing::warn!("{} does not name this process: {e}", path.display());
    }
    Ok(file)
}

impl Holder {
    fn this() -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let pid = std::process::id();
        Self { host: host.trim().into(), pid, started: start_of(pid) }
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&read_bounded(path, MAX_BYTES).ok()?.ok()?).ok()
    }

    /// Whether this is another process than `this`, of the same machine, and still there.
    fn runs_beside(&self, this: &Self) -> bool {
        self.host == this.host
            && self.pid != this.pid
            && self.started.is_some()
            && start_of(self.pid) == self.started
    }
}

/// When a process of this machine was started; none if there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    const FIELDS_BETWEEN_NAME_AND_START: usize = 19;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets; what follows it does not.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(FIELDS_BETWEEN_NAME_AND_START)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_locks(_: &File) -> Result<(), TryLockError> {
        Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()))
    }

    #[test]
    fn a_second_holder_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let sentence = take(dir.path()).unwrap_err().to_string();
        let this = Holder::this();
        assert!(!this.host.is_empty() && this.started.is_some());
        assert!(sentence.contains(&format!("(process {} on {})", this.pid, this.host)), "{sentence}");
        drop(first);
        take(dir.path()).unwrap();
    }

    #[test]
    fn where_there_are_no_locks_a_live_process_is_respected_and_a_dead_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let this = Holder::this();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = Holder { pid: child.id(), started: start_of(child.id()), ..this.clone() };
        drop(take_with(dir.path(), &other, no_locks).unwrap());
        let refused = take_with(dir.path(), &this, no_locks);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
        drop(take_with(dir.path(), &this, no_locks).unwrap());
        assert_eq!(Holder::read(&dir.path().join(LOCK)), Some(this.clone()));
        drop(take_with(dir.path(), &this, no_locks).unwrap());
        // The same number, given to another process since.
        let earlier = Holder { pid: std::process::id(), started: Some(1), ..this.clone() };
        assert!(!earlier.runs_beside(&Holder { pid: 1, ..this }));
    }
}
