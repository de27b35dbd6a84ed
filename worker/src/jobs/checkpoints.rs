//! `ilm-worker checkpoints`: what a run has saved, whether it is whole, and what may go.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use ::checkpoints::{Depth, Entry, Store};

use crate::cli::{CheckpointsCommand, PruneArgs};
use crate::run_dir::RunDir;
use crate::{config, exit, say};

/// Runs the command; the result is the exit code.
///
/// # Errors
/// If the run directory or its configuration cannot be read, or a checkpoint cannot be removed.
pub fn checkpoints(command: &CheckpointsCommand) -> anyhow::Result<i32> {
    match command {
        CheckpointsCommand::List(args) => show(&args.run_dir, Depth::Sizes).map(|_| exit::OK),
        CheckpointsCommand::Verify(args) => {
            let states = show(&args.run_dir, Depth::Contents)?;
            // A run that has nothing to go on from is no good one.
            let all_valid = !states.is_empty() && states.iter().all(|valid| *valid);
            Ok(if all_valid { exit::OK } else { exit::CHECKPOINT })
        }
        CheckpointsCommand::Prune(args) => prune(args),
    }
}

/// Prints a line per checkpoint; the result says of each whether it can be used.
fn show(run_dir: &Path, depth: Depth) -> anyhow::Result<Vec<bool>> {
    ensure!(run_dir.is_dir(), "--run-dir {} is not a directory; name the folder of a run", run_dir.display());
    let entries = Store::open(run_dir)?.entries(depth)?;
    if entries.is_empty() {
        say!("{} holds no checkpoint", run_dir.display());
    }
    for entry in &entries {
        say!("{}", line(entry, depth));
    }
    Ok(entries.iter().map(|entry| entry.state.is_ok() && entry.metrics.is_ok()).collect())
}

fn line(entry: &Entry, depth: Depth) -> String {
    let mib = entry.bytes as f64 / f64::from(1 << 20);
    let age = entry.age.map_or("-".to_owned(), age);
    let ranks = entry.state.as_ref().map_or("-".to_owned(), |state| state.world_size.to_string());
    let state = match (entry.fault(), depth) {
        (Some(fault), _) => fault.to_string(),
        (None, Depth::Sizes) => "all files there".to_owned(),
        (None, Depth::Contents) => "valid".to_owned(),
    };
    let figures = match &entry.metrics {
        Ok(metrics) => metrics.iter().map(|(name, value)| format!("  {name} {value}")).collect(),
        Err(fault) => format!("  {fault}"),
    };
    format!("step {:>9}  {mib:>10.1} MiB  {ranks:>4} ranks  {age:>4} old  {state}{figures}", entry.step)
}

/// The largest unit that gives at least 1.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
    let (size, unit) = units.into_iter().find(|(size, _)| seconds >= *size).unwrap_or((1, 's'));
    format!("{}{unit}", seconds / size)
}

fn prune(args: &PruneArgs) -> anyhow::Result<i32> {
    let run_dir = &args.run_dir.run_dir;
    let config = config::load_run(&RunDir::new(run_dir).config(), &args.overrides)?.experiment.checkpoint;
    let mut store = Store::open(run_dir)?;
    if args.dry_run {
        let steps = store.expendable(&config)?;
        steps.iter().for_each(|step| say!("would remove step {step}"));
        say!("{} of {} checkpoints would go", steps.len(), store.list()?.len());
    } else {
        let removed = store.prune(&config)?;
        removed.iter().for_each(|dir| say!("removed {}", dir.display()));
        say!("{} checkpoints are left", store.list()?.len());
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (200_000, "2d")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
