//! What the launcher understands of the worker's arguments: the run directory, and whether they train.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The worker's command where none is named.
const TRAIN: &str = "train";

/// Commands that take the run directory of an experiment where none is named.
const OF_AN_EXPERIMENT: [&str; 3] = [TRAIN, "evaluate", "generate"];

/// The run directory that the worker will use: the one that is named, otherwise that of the experiment. `None` if the worker has
/// none, or writes nothing there.
pub fn run_dir(worker_args: &[OsString]) -> Option<PathBuf> {
    if let Some(named) = value(worker_args, "--run-dir") {
        return Some(named.into());
    }
    let own = own(worker_args);
    let has_default = OF_AN_EXPERIMENT.iter().any(|command| command_of(own) == *command);
    if !has_default || own.iter().any(|arg| arg == "--dry-run") {
        return None;
    }
    value(own, "--experiment").map(|name| Path::new("runs").join(name))
}

/// Whether they train; other jobs are guests in the directory of a run.
pub fn trains(worker_args: &[OsString]) -> bool {
    command_of(own(worker_args)) == TRAIN
}

/// Those of the worker itself where a container's command line stands before them.
fn own(worker_args: &[OsString]) -> &[OsString] {
    let is_worker = |arg: &OsString| Path::new(arg).file_name().is_some_and(|name| name == "ilm-worker");
    worker_args.iter().rposition(is_worker).map_or(worker_args, |place| &worker_args[place + 1..])
}

/// The command that they name, as the worker finds it: the first word, unless that is an option or a setting.
fn command_of(own: &[OsString]) -> &OsStr {
    let is_command =
        |first: &&OsString| !first.as_bytes().starts_with(b"-") && !first.as_bytes().contains(&b'=');
    own.first().filter(is_command).map_or(OsStr::new(TRAIN), OsString::as_os_str)
}

/// The value of an option in either form.
fn value<'a>(args: &'a [OsString], option: &str) -> Option<&'a OsStr> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == option {
            return args.next().map(OsString::as_os_str);
        }
        let rest = arg.as_bytes().strip_prefix(option.as_bytes());
        if let Some(value) = rest.and_then(|rest| rest.strip_prefix(b"=")) {
            return Some(OsStr::from_bytes(value));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_named_run_directory_is_found_in_both_forms() {
        let run_dir = |args: &[&str]| run_dir(&os(args));
        assert_eq!(run_dir(&["train", "--run-dir", "a b"]), Some("a b".into()));
        assert_eq!(run_dir(&["--run-dir=x", "seed=1", "--experiment", "e"]), Some("x".into()));
        assert_eq!(run_dir(&["--run-directory", "x", "--run-dir"]), None);
    }

    #[test]
    fn otherwise_it_is_that_of_the_experiment_as_the_worker_has_it() {
        let run_dir = |args: &[&str]| run_dir(&os(args));
        for args in [
            &["--experiment", "e"][..],
            &["seed=1", "--experiment=e"],
            &["train", "--fresh", "--experiment", "e"],
            &["evaluate", "--experiment", "e"],
            &["generate", "--experiment=e", "--num", "4"],
            &["exec", "--nv", "ilm.sif", "/opt/ilm-worker", "--experiment", "e"],
        ] {
            assert_eq!(run_dir(args), Some("runs/e".into()), "{args:?}");
        }
        for args in [
            &["plan", "--experiment", "e"][..],
            &["prepare", "--experiment", "e", "--output", "o"],
            &["--experiment", "e", "--dry-run"],
            &["--experiment"],
            &[],
        ] {
            assert_eq!(run_dir(args), None, "{args:?}");
        }
    }

    #[test]
    fn a_run_is_told_from_jobs_beside_it() {
        let trains = |args: &[&str]| trains(&os(args));
        assert!(trains(&[]) && trains(&["--run-dir", "r"]) && trains(&["train"]) && trains(&["seed=1"]));
        assert!(trains(&["exec", "ilm.sif", "ilm-worker", "--run-dir", "r"]));
        assert!(!trains(&["evaluate", "--run-dir", "r"]) && !trains(&["exec", "ilm-worker", "generate"]));
    }
}
