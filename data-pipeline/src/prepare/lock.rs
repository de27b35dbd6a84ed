//! The lock of an output folder: one job writes there at a time, and its end releases the lock, however it ends.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use crate::error::{Error, Result};

/// Holds the kernel's lock (`flock`) on it; the file stays, since who takes it away may take the lock of another.
const LOCK: &str = ".lock";

/// Makes this job the one that writes to a folder, which is created if needed, until the file is dropped.
///
/// # Errors
/// When another job writes there, or the folder cannot be written to.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).map_err(|source| Error::Io { action: "create", path: dir.to_owned(), source })?;
    let path = dir.join(LOCK);
    let opened = File::options().create(true).append(true).open(&path);
    let file = opened.map_err(|source| Error::Io { action: "write", path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::Setting(format!(
                "another job is writing to '{}'; wait for its end, or use another output folder",
                dir.display()
            )));
        }
        // Network file systems that are mounted without a lock service.
        Err(TryLockError::Error(error)) => tracing::warn!(
            "'{}' cannot be locked: {error}; take care that no second job writes there",
            path.display()
        ),
    }
    Ok(file)
}
