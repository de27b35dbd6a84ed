//! The lock of a folder or an output: one process holds it, and its end releases it, however it ends.
//!
//! The lock is the kernel's (`flock`), so a crash leaves none behind. The file also names its holder, for the sentence that refuses a
//! second process and for file systems that have no locks.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::is_taken;

/// A larger file was not written by this module.
const MAX_BYTES: u64 = 4096;
/// So often a file may lose its name while it is locked, before its name is what is not to be trusted.
const MOST_TRIES: usize = 100;

/// Why a lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("process {holder} holds it")]
    Held {
        /// Its number and its machine, or that they are unknown.
        holder: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Makes this process the only one of those that ask for the same file, until it is dropped.
#[derive(Debug)]
pub struct FileLock {
    /// Holds the kernel's lock.
    file: File,
    path: PathBuf,
    /// Whether the file goes with the lock.
    goes: bool,
}

/// The process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// When the process was started, in ticks since its machine was: a number of a process may be used again.
    started: Option<u64>,
}

impl FileLock {
    /// Locks the file `path`, whose folder exists. The file stays.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has locked it, or the disk refuses.
    pub fn take(path: PathBuf) -> Result<Self, LockError> {
        Self::take_with(path, &Holder::this(), File::try_lock)
    }

    /// The same; the file goes with the lock.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub fn take_for_a_while(path: PathBuf) -> Result<Self, LockError> {
        let mut lock = Self::take(path)?;
        lock.goes = true;
        Ok(lock)
    }

    fn take_with(
        path: PathBuf,
        this: &Holder,
        try_lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, LockError> {
        if is_taken(&path) {
            let other = format!("{} is a folder, a device or a pipe, not a file", path.display());
            return Err(io::Error::other(other).into());
        }
        let mut tries = 1..=MOST_TRIES;
        loop {
            let file = File::options().create(true).append(true).open(&path)?;
            let holder = Holder::read(&path);
            let held = || LockError::Held {
                holder: holder
                    .as_ref()
                    .map_or("unknown".into(), |other| format!("{} on {}", other.pid, other.host)),
            };
            match try_lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held()),
                // Network file systems mounted without a lock service: only processes of this machine can be told apart.
                Err(TryLockError::Error(_))
                    if holder.as_ref().is_some_and(|other| other.runs_beside(this)) =>
                {
                    return Err(held());
                }
                Err(TryLockError::Error(e)) => tracing::warn!(
                    "{} cannot be locked: {e}; take care that no second process writes there",
                    path.display()
                ),
            }
            if tries.next().is_none() || is_at(&file, &path) {
                let lock = Self { file, path, goes: false };
                lock.name(this);
                return Ok(lock);
            }
        }
    }

    /// Writes who holds it into the file. A full disk must not keep a person from what the lock is for.
    fn name(&self, this: &Holder) {
        let mut file = &self.file;
        let text = serde_json::to_string(this).map_err(io::Error::from);
        let named = text.and_then(|text| file.set_len(0).and_then(|()| file.write_all(text.as_bytes())));
        if let Err(e) = named {
            tracing::warn!("{} does not name this process: {e}", self.path.display());
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.goes {
            // One that stays does no harm: the next process locks it again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the file still has its name, which may go with the lock of who held it before.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Holder {
    fn this() -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let pid = std::process::id();
        Self { host: host.trim().into(), pid, started: start_of(pid) }
    }

    fn read(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
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
        Err(TryLockError::Error(io::ErrorKind::Unsupported.into()))
    }

    #[test]
    fn a_second_holder_is_refused_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let first = FileLock::take(path.clone()).unwrap();
        let sentence = FileLock::take(path.clone()).unwrap_err().to_string();
        let this = Holder::this();
        assert!(!this.host.is_empty() && this.started.is_some());
        assert_eq!(sentence, format!("process {} on {} holds it", this.pid, this.host));
        drop(first);
        FileLock::take(path.clone()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_file_for_a_while_goes_with_its_lock_and_one_that_a_crash_left_is_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.lock");
        fs::write(&path, "cut o").unwrap();
        let first = FileLock::take_for_a_while(path.clone()).unwrap();
        assert!(matches!(FileLock::take_for_a_while(path.clone()), Err(LockError::Held { .. })));
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_lost_its_name_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.lock");
        // The holder before goes between this process's opening and its locking.
        let removed = std::cell::Cell::new(false);
        let first_goes = |file: &File| {
            if !removed.replace(true) {
                fs::remove_file(&path).map_err(TryLockError::Error)?;
            }
            file.try_lock()
        };
        let _lock = FileLock::take_with(path.clone(), &Holder::this(), first_goes).unwrap();
        assert!(matches!(FileLock::take(path.clone()), Err(LockError::Held { .. })));
    }

    #[test]
    fn where_there_are_no_locks_a_live_process_is_respected_and_a_dead_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let take = |holder: &Holder| FileLock::take_with(path.clone(), holder, no_locks);
        let this = Holder::this();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = Holder { pid: child.id(), started: start_of(child.id()), ..this.clone() };
        drop(take(&other).unwrap());
        let refused = take(&this);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(refused, Err(LockError::Held { .. })), "{refused:?}");
        drop(take(&this).unwrap());
        assert_eq!(Holder::read(&path), Some(this.clone()));
        drop(take(&this).unwrap());
        // The same number, given to another process since.
        let earlier = Holder { pid: std::process::id(), started: Some(1), ..this.clone() };
        assert!(!earlier.runs_beside(&Holder { pid: 1, ..this }));
    }

    #[test]
    fn a_pipe_of_that_name_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sentence = FileLock::take(path).unwrap_err().to_string();
        assert!(sentence.contains(".lock is a folder, a device or a pipe"), "{sentence}");
    }
}
