//! What can go wrong before and around the ranks, each in one sentence.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// An error of the launcher itself; failures of ranks are an [`crate::outcome::Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `-n 0`.
    #[error("-n 0 starts no rank; ask for 1 or more")]
    NoRanks,
    /// Neither `-n` nor `--hosts`.
    #[error("how many ranks? say -n N, or --hosts a:8,b:8 for several machines")]
    HowManyRanks,
    /// A list of hosts that is none.
    #[error("--hosts: '{part}' {reason}; write it as a:8,b:8")]
    BadHosts {
        /// The part of the list.
        part: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `-n` beyond the list of hosts.
    #[error("-n {ranks} is more than the {room} ranks that --hosts has room for")]
    TooManyRanks {
        /// Ranks asked for.
        ranks: usize,
        /// Ranks of the list.
        room: usize,
    },
    /// Several hosts and no run directory.
    #[error(
        "several machines need --run-dir DIR among the worker's arguments, on a file system that they share"
    )]
    NoSharedFolder,
    /// `--cpu-bind cores` with more ranks than cores.
    #[error(
        "--cpu-bind cores needs a core for each rank, but {ranks} ranks share {cores} usable cores; use --cpu-bind none"
    )]
    TooFewCores {
        /// Ranks asked for.
        ranks: usize,
        /// Cores this process may use.
        cores: usize,
    },
    /// No `mpirun` in PATH.
    #[error("mpirun is not in PATH; install it with: apt install openmpi-bin")]
    NoMpirun,
    /// `--srun` outside of an allocation.
    #[error(
        "--srun works within a Slurm allocation only; ask for one with salloc or sbatch, or leave it out"
    )]
    NoAllocation,
    /// `--worker` names no executable file.
    #[error("--worker {} is not an executable file", path.display())]
    BadWorker {
        /// As given.
        path: PathBuf,
    },
    /// No `ilm-worker` found.
    #[error("ilm-worker is neither in {} nor in PATH; build it with cargo build --release or name it with --worker", beside.display())]
    NoWorker {
        /// The launcher's own folder.
        beside: PathBuf,
    },
    /// `status --run-dir` names no directory.
    #[error("--run-dir {} is not a directory; name the folder that holds the run's config.toml", path.display())]
    NoRunDir {
        /// As given.
        path: PathBuf,
    },
    /// `--cluster` names no file.
    #[error("there is no cluster '{name}'; there are {known}")]
    NoCluster {
        /// As given.
        name: String,
        /// The names of those there are.
        known: String,
    },
    /// A key that no cluster has.
    #[error("{origin} has no key '{key}'; {hint}")]
    NoSuchKey {
        /// As given.
        key: String,
        /// The file, or `--set`.
        origin: String,
        /// The nearest key, or all.
        hint: String,
    },
    /// `--set` without `=`.
    #[error("--set {text} is not of the form key=value")]
    NotASetting {
        /// As given.
        text: String,
    },
    /// A value that does not fit, or values that do not fit each other.
    #[error("cluster settings: {reason}")]
    BadCluster {
        /// Where, what, and what to do.
        reason: String,
    },
    /// `--each` with quotes that do not close.
    #[error("--each {text:?} has an open quote")]
    Unquoted {
        /// As given.
        text: String,
    },
    /// A word that cannot stand in a batch script.
    #[error(
        "{word:?} cannot stand in a batch script; use letters, digits, '-', '_' and '.' in names and no line feeds"
    )]
    NotAWord {
        /// As given.
        word: String,
    },
    /// An argument that is not UTF-8.
    #[error("{arg:?} is not valid UTF-8, as a batch script has to be")]
    NotText {
        /// As given.
        arg: OsString,
    },
    /// `--fresh` in a job that may be queued again.
    #[error(
        "--fresh would start anew whenever the job is queued again; leave it out and name a new --run-dir"
    )]
    FreshJob,
    /// The shipped template does not fit the settings.
    #[error("the batch script cannot be written: {reason}")]
    Template {
        /// The template engine's words.
        reason: String,
    },
    /// No `sbatch` in PATH.
    #[error("sbatch is not in PATH; submit on a machine of the cluster, or write the script with --output")]
    NoSbatch,
    /// `sbatch` failed; it has said why.
    #[error("sbatch did not take the job")]
    NotSubmitted,
    /// The rank wrapper was started by something that sets no rank.
    #[error("the rank of this process is unknown: none of {variables} is set")]
    NoRank {
        /// The variables that were looked at.
        variables: String,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// A verb: "create", "start".
        doing: &'static str,
        /// The file or executable concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: "cannot `doing` `path`: ...".
    pub fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// The exit code of the launcher for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::NoRank { .. } | Self::Template { .. } | Self::NotSubmitted => 1,
            _ => 2,
        }
    }
}

/// The result of launcher functions.
pub type Result<T> = std::result::Result<T, Error>;
