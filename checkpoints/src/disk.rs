//! The few file system operations whose order makes a commit safe, each with the path in its error.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// The checksum of the format: XXH3 with 64 bits, as 16 lower-case hexadecimal digits.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// Makes the entries of a directory durable (its files' contents are synced by whoever wrote them).
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|file| file.sync_all()).or_else(|e| match e.kind() {
        // Some network file systems cannot sync directories and need not.
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(()),
        _ => Err(Error::io("sync", dir, e)),
    })
}

/// Creates a directory and its parents.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Error::NotADirectory { path: dir.to_path_buf() },
        _ => Error::io("create", dir, e),
    })
}

/// Creates a file with these contents and makes them durable.
pub(crate) fn write_new(path: &Path, contents: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// Reads a small regular file whole. A file above `most` bytes, or no file at all but a pipe or a directory, is the
/// inner error: what is wrong with it.
pub(crate) fn read_bounded(path: &Path, most: u64) -> Result<Result<Vec<u8>, String>> {
    // Opening a pipe would wait for a writer.
    let found = path.metadata().map_err(|e| Error::io("read", path, e))?;
    if !found.is_file() {
        return Ok(Err("it is not a regular file".into()));
    }
    if found.len() > most {
        return Ok(Err(format!("it has {} bytes", found.len())));
    }
    fs::read(path).map(Ok).map_err(|e| Error::io("read", path, e))
}

/// Renames within one directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
}

/// Removes a file or a directory with all it holds; one that is gone already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
