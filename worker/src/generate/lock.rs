//! The lock of an output: one process writes it at a time, and its end releases the lock, however it ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::run_dir::RunDirError;
use crate::telemetry;

/// Makes this process the one that writes an output, until it is dropped.
#[derive(Debug)]
pub struct OutputLock {
    path: PathBuf,
    /// Holds the kernel's lock (`flock`).
    _file: File,
}

impl OutputLock {
    /// Locks the file `path` for who writes `output`.
    ///
    /// # Errors
    /// If another process does, or the disk refuses.
    pub(super) fn take(path: PathBuf, output: &Path) -> Result<Self, RunDirError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(RunDirError::new("create", folder))?;
        }
        loop {
            let opened = File::options().create(true).append(true).open(&path);
            let file = opened.map_err(RunDirError::new("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let busy = "another process is writing it; wait for its end, or name another --output";
                    return Err(RunDirError::new("write", output)(io::Error::other(busy)));
                }
                // Network file systems that are mounted without a lock service.
                Err(TryLockError::Error(error)) => telemetry::warn(&format!(
                    "{} cannot be locked: {error}; take care that no second process writes {}",
                    path.display(),
                    output.display()
                )),
            }
            if is_at(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

/// Whether the file still has its name, which goes with the lock of who held it before.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // One that stays does no harm: the next process locks it again.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_until_the_first_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (path, output) = (folder.path().join("new/x.part-lock"), folder.path().join("new/x"));
        let take = || OutputLock::take(path.clone(), &output);
        let first = take().unwrap();
        let sentence = take().unwrap_err().to_string();
        assert!(sentence.contains("new/x: another process is writing it"), "{sentence}");
        drop(first);
        assert!(!path.exists());
        drop(take().unwrap());

        // a crash leaves the file and no lock
        fs::write(&path, "").unwrap();
        take().unwrap();
    }
}
