//! Exit codes: what they are, and which one an error gets.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

use crate::bench::BenchError;
use crate::comm::{CommError, GpuError, abort_process};
use crate::complain;
use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::generate::RequestError;
use crate::jobs::RowsGone;
use crate::judge::FolderError;
use crate::run_dir::RunDirError;
use crate::train::{Incompatible, NoCheckpoint, NonFinite, OtherNetwork, OtherTokenizer, SaveFailed};

/// All went well.
pub const OK: i32 = 0;
/// The command line or the configuration is wrong, or names something that is not there.
pub const USAGE: i32 = 2;
/// Training or evaluation data, or a file of prompts, cannot be read.
pub const DATA: i32 = 3;
/// A checkpoint or the run directory cannot be read or written.
pub const CHECKPOINT: i32 = 4;
/// The ranks cannot speak to each other, one waited too long for another, they hold different parameters, or a GPU failed.
pub const COMMUNICATION: i32 = 5;
/// Loss or gradient is not finite, more often than steps may be skipped.
pub const NON_FINITE: i32 = 6;
/// What was computed again is not what the run recorded.
pub const DIFFERS: i32 = 7;
/// Told to stop, and stopped after saving what is done: starting again goes on from there.
pub const PREEMPTED: i32 = 75;
/// A bug of this program.
pub const PANIC: i32 = 101;

/// Longer than mpirun takes to tell the other ranks after one has failed (measured: up to 1.3 s, on a busy machine 4 s).
const PATIENCE_WITH_RANK_0: Duration = Duration::from_secs(6);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The exit code of an error, by the first of its causes that is known.
pub fn code_of(error: &anyhow::Error) -> i32 {
    error.chain().find_map(code_of_cause).unwrap_or(USAGE)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<i32> {
    if let Some(data) = cause.downcast_ref::<data_pipeline::Error>() {
        return Some(if data.is_config() { USAGE } else { DATA });
    }
    if let Some(model) = cause.downcast_ref::<ilm_model::Error>() {
        return Some(if model.is_device_failure() { COMMUNICATION } else { USAGE });
    }
    if let Some(gpu) = cause.downcast_ref::<GpuError>() {
        return Some(if matches!(gpu, GpuError::Call { .. }) { COMMUNICATION } else { USAGE });
    }
    let known = [
        (cause.is::<ConfigError>() || cause.is::<DeviceError>(), USAGE),
        (cause.is::<BenchError>(), USAGE),
        (cause.is::<RowsGone>(), DATA),
        (cause.is::<checkpoints::Error>() || cause.is::<RunDirError>(), CHECKPOINT),
        (cause.is::<Incompatible>() || cause.is::<SaveFailed>(), CHECKPOINT),
        (cause.is::<OtherNetwork>() || cause.is::<OtherTokenizer>(), CHECKPOINT),
        (cause.is::<NoCheckpoint>(), CHECKPOINT),
        (cause.is::<RequestError>(), DATA),
        (cause.is::<FolderError>(), CHECKPOINT),
        (cause.is::<CommError>(), COMMUNICATION),
        (cause.is::<NonFinite>(), NON_FINITE),
    ];
    known.into_iter().find_map(|(matches, code)| matches.then_some(code))
}

/// The error and its causes, without those that it names itself, and with a cure for the commonest one.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        // Types that name their source in their own words are sources of their own all the same.
        if !text.contains(&said) {
            let colon = if text.is_empty() { "" } else { ": " };
            text += &format!("{colon}{said}");
        }
    }
    if let Some(folder) = error.chain().find_map(no_run_dir) {
        text += &format!(
            "; {} is no run directory, so name the folder of a run with --run-dir",
            folder.display()
        );
    }
    text
}

/// The folder whose `config.toml`, which every run has, is missing.
fn no_run_dir<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Path> {
    match cause.downcast_ref::<ConfigError>()? {
        ConfigError::Read { path, source } if source.kind() == ErrorKind::NotFound => {
            path.parent().filter(|_| path.file_name().is_some_and(|name| name == "config.toml"))
        }
        _ => None,
    }
}

/// Prints the error as one sentence and ends this process and its peers with the error's code.
///
/// Must be called before the communicator is dropped: finalising MPI waits for ranks that wait for this one.
pub fn fail(error: &anyhow::Error, rank: usize, world_size: usize) -> ! {
    if rank == 0 || world_size == 1 {
        complain!("error: {}", sentence(error));
    } else if !another_spoke() {
        complain!("error: rank {rank}: {}", sentence(error));
    }
    // Nothing can be done about a standard output that has gone away.
    let _ = std::io::stdout().flush();
    abort_process(code_of(error))
}

/// Whether this rank is ended within some seconds: all often fail alike, and rank 0 then speaks for them and ends first. The launcher
/// asks the others to end before it kills them.
fn another_spoke() -> bool {
    let asked = Arc::new(AtomicBool::new(false));
    // Where it cannot be heard, it comes with the kill.
    let _ = signal_hook::flag::register(SIGTERM, Arc::clone(&asked));
    let began = Instant::now();
    while began.elapsed() < PATIENCE_WITH_RANK_0 && !asked.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_AGAIN);
    }
    asked.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use std::io;

    fn missing(path: &str) -> anyhow::Error {
        ConfigError::Read { path: path.into(), source: ErrorKind::NotFound.into() }.into()
    }

    #[test]
    fn a_file_that_goes_while_a_job_reads_it_is_no_mistake_of_its_settings() {
        let gone = || data_pipeline::Error::Io {
            action: "read",
            path: "train.parquet".into(),
            source: ErrorKind::NotFound.into(),
        };
        assert_eq!(code_of(&gone().into()), USAGE);
        let later: anyhow::Error = RowsGone::from(gone()).into();
        assert_eq!((code_of(&later), sentence(&later)), (DATA, sentence(&gone().into())));
    }

    #[test]
    fn a_cause_is_said_once() {
        let full = io::Error::other("disk full");
        assert_eq!(sentence(&full.into()), "disk full");
        let read = missing("a/own.toml").context("while looking");
        assert_eq!(sentence(&read), "while looking: cannot read a/own.toml: entity not found");
        let two: anyhow::Result<()> = Err(io::Error::other("disk full")).context("cannot save");
        assert_eq!(sentence(&two.unwrap_err()), "cannot save: disk full");
    }

    #[test]
    fn a_folder_that_is_none_of_a_run_is_said_to_be_none() {
        let expected = "cannot read runs/x/config.toml: entity not found; runs/x is no run directory, so name the folder of a run \
                        with --run-dir";
        assert_eq!(sentence(&missing("runs/x/config.toml")), expected);
    }
}
