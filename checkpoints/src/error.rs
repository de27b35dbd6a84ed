//! Every way in which saving or loading can fail, as one sentence with the path and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::weights::WeightsError;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk, the quota or the file size limit is exhausted.
    #[error("no space left to write {path} ({source}); free space or choose another run directory")]
    NoSpace {
        /// The file or directory being written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file system is mounted read-only.
    #[error("{path} is on a read-only file system; choose a run directory that can be written")]
    ReadOnly {
        /// The file or directory being written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process may not do this.
    #[error("no permission to {action} {path}; change its owner or mode, or choose another run directory")]
    Permission {
        /// What was tried: "write", "read", ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file stands where a directory belongs.
    #[error("{path} is not a directory; move it away or choose another run directory")]
    NotADirectory {
        /// The path that should be a directory.
        path: PathBuf,
    },
    /// Any other failure of the operating system.
    #[error("cannot {action} {path}: {source}; check the file system and try again")]
    Io {
        /// What was tried: "write", "read", ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process writes checkpoints into the same run directory.
    #[error(
        "another process is writing checkpoints to {path} (process {holder}); stop it or choose another run directory"
    )]
    Locked {
        /// The checkpoint directory.
        path: PathBuf,
        /// The other process and its machine.
        holder: String,
    },
    /// The directory was never committed, or is not a checkpoint.
    #[error("{path} is missing, so its directory is not a complete checkpoint; use an older checkpoint")]
    MissingManifest {
        /// Where the manifest should be.
        path: PathBuf,
    },
    /// The manifest was cut, edited or damaged, or contradicts itself.
    #[error("manifest {path} is damaged: {what}; use an older checkpoint")]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// The figures recorded with a checkpoint were cut, edited or damaged; the checkpoint itself may be right.
    #[error("{path} is damaged: {what}; the checkpoint's figures are lost, the checkpoint is not")]
    BadMetrics {
        /// The file of figures.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// The manifest is of a format version that this program cannot read.
    #[error(
        "manifest {path} has format version {found} but this program reads version {supported}; use the program that wrote it"
    )]
    WrongVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version this crate reads and writes.
        supported: u64,
    },
    /// A shard that the manifest names is not there.
    #[error(
        "shard {path} is missing; use an older checkpoint, and let all ranks write to one shared run directory"
    )]
    MissingShard {
        /// Where the shard should be.
        path: PathBuf,
    },
    /// A shard is shorter or longer than the manifest says.
    #[error(
        "shard {path} has {found} bytes instead of {expected}, so it was cut or overwritten; use an older checkpoint"
    )]
    WrongSize {
        /// The shard.
        path: PathBuf,
        /// Bytes according to the manifest.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// Bytes of a shard are not the bytes that were written.
    #[error("shard {path} is damaged in {part}: its checksum differs; use an older checkpoint")]
    BadChecksum {
        /// The shard.
        path: PathBuf,
        /// Which part of it.
        part: String,
    },
    /// A shard's safetensors header contradicts the manifest.
    #[error("shard {path} has a header that does not match the manifest: {what}; use an older checkpoint")]
    BadHeader {
        /// The shard.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// What the caller wants to save is not a whole, consistent checkpoint.
    #[error("refusing to save {path}: {what}; this is a fault of the calling program")]
    Unsavable {
        /// The file or directory that would have been written.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// There is not enough memory for the copy that is written in the background.
    #[error(
        "no memory for a copy of {mib} MiB, which saving in the background needs; set checkpoint.asynchronous = false"
    )]
    NoMemory {
        /// The copy's size in MiB.
        mib: usize,
    },
    /// The checkpoint has no such section.
    #[error("checkpoint {path} has no section '{section}' (it has {known}); choose one of those")]
    UnknownSection {
        /// The checkpoint.
        path: PathBuf,
        /// The section asked for.
        section: String,
        /// The sections there are.
        known: String,
    },
    /// The checkpoint has no such parameter.
    #[error(
        "checkpoint {path} has no parameter '{name}'; check that the model settings are those of the checkpoint"
    )]
    UnknownTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The parameter asked for.
        name: String,
    },
    /// A range or buffer that does not fit the arena.
    #[error(
        "cannot read elements {start}..{end} of checkpoint {path} into {buffer} elements: the arena has {len}; ask for a range inside it"
    )]
    OutOfRange {
        /// The checkpoint.
        path: PathBuf,
        /// First element asked for.
        start: usize,
        /// One past the last element asked for.
        end: usize,
        /// Length of the caller's buffer in elements.
        buffer: usize,
        /// Elements of the arena.
        len: u64,
    },
    /// The model to be filled is not the model that was saved.
    #[error("checkpoint {path} does not fit this model: {what}; use the model settings of the checkpoint")]
    LayoutMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// The first difference.
        what: String,
    },
    /// Published weights that cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A setting of section `checkpoint` is out of range.
    #[error("checkpoint.{key} = {value} is too small; use at least {least}")]
    Config {
        /// The key within the section.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least value allowed.
        least: u64,
    },
    /// The best checkpoints are to be kept, but nothing says by which figure.
    #[error(
        "checkpoint.keep_best = {keep_best} needs checkpoint.monitor, the name of a figure of the validation (for \
         example \"loss\"); set it, or set checkpoint.keep_best = 0"
    )]
    NoMonitor {
        /// How many are to be kept.
        keep_best: usize,
    },
}

impl Error {
    /// Sorts an operating system error into the variant whose advice fits.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { path, source }
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, source },
            io::ErrorKind::PermissionDenied => Self::Permission { action, path, source },
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            _ => Self::Io { action, path, source },
        }
    }

    /// Whether parts of a checkpoint are gone or are not what was written, so that it can never be used again. All else that
    /// keeps one from being read, like a server that does not answer or a missing permission, says nothing against it.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NotADirectory { .. }
                | Self::MissingManifest { .. }
                | Self::BadManifest { .. }
                | Self::MissingShard { .. }
                | Self::WrongSize { .. }
                | Self::BadChecksum { .. }
                | Self::BadHeader { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_fits_what_the_operating_system_said() {
        for (kind, start) in [
            (io::ErrorKind::StorageFull, "no space left to write /run/x (no storage space"),
            (io::ErrorKind::QuotaExceeded, "no space left to write /run/x (quota exceeded"),
            (io::ErrorKind::FileTooLarge, "no space left to write /run/x (file too large"),
            (io::ErrorKind::ReadOnlyFilesystem, "/run/x is on a read-only file system"),
            (io::ErrorKind::PermissionDenied, "no permission to write /run/x;"),
            (io::ErrorKind::NotADirectory, "/run/x is not a directory;"),
            (io::ErrorKind::TimedOut, "cannot write /run/x: timed out;"),
        ] {
            let sentence = Error::io("write", Path::new("/run/x"), kind.into()).to_string();
            assert!(sentence.starts_with(start), "{sentence}");
        }
    }
}
