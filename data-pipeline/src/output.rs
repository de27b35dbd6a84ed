//! What a job writes: one job at a time to a folder, and small files as a whole.

use std::{fs, path::Path};

use files::{FileLock, LockError};

use crate::error::{Error, Result};

/// Stays when a job has ended: who takes it away may take the lock of another.
const LOCK: &str = ".lock";

/// Makes this job the one that writes to a folder, which is created if needed, until the lock is dropped.
///
/// # Errors
/// When another job writes there, or the folder cannot be written to.
pub(crate) fn lock(dir: &Path) -> Result<FileLock> {
    fs::create_dir_all(dir).map_err(|source| Error::Io { action: "create", path: dir.to_owned(), source })?;
    let path = dir.join(LOCK);
    FileLock::take(path.clone()).map_err(|error| match error {
        LockError::Held { holder } => Error::Setting(format!(
            "another job is writing to '{}' (process {holder}); wait for its end, or use another output folder",
            dir.display()
        )),
        LockError::Io(source) => Error::Io { action: "write", path, source },
    })
}

/// Writes a file so that a reader sees the old or the new one, never a part.
///
/// # Errors
/// If the disk refuses, or something else than a file is there.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    if files::is_taken(path) {
        return Err(Error::Setting(format!(
            "'{}' is a folder, a device or a pipe, not a file; name another file to write",
            path.display()
        )));
    }
    files::replace(path, content).map_err(|source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_the_users_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace_file(folder.path(), b"new").unwrap_err();
        assert!(error.is_config() && error.to_string().contains("not a file"), "{error}");
    }
}
