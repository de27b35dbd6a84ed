//! Output stays readable and complete, in the terminal and in the logs, and ranks get the cores they were promised.

use crate::support::{Bench, text};
use std::collections::BTreeSet;
use std::fs;

#[test]
fn rank_0_is_plain_and_others_have_a_prefix() {
    let bench = Bench::new("echo out $RANK; echo err $RANK >&2; printf unfinished; echo $* > args.$RANK");
    let output = bench.run(2, &[], &["train", "--run-dir=runs/b", "key.path=a b"]);
    assert_eq!(output.status.code(), Some(0));
    let lines: BTreeSet<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    let expected = ["out 0", "unfinished", "[rank 1] out 1", "[rank 1] unfinished"];
    assert_eq!(lines, expected.map(str::to_owned).into());
    let lines: BTreeSet<String> = text(&output.stderr).lines().map(str::to_owned).collect();
    assert_eq!(lines, ["err 0", "[rank 1] err 1"].map(str::to_owned).into());
    for rank in 0..2 {
        let log = bench.read(&format!("runs/b/logs/rank-{rank}.log"));
        assert!(log.contains(&format!("out {rank}\n")) && log.contains(&format!("err {rank}\n")), "{log}");
        assert_eq!(bench.read(&format!("args.{rank}")), "train --run-dir=runs/b key.path=a b\n");
    }
}

#[test]
fn no_line_is_broken_or_lost_when_all_write_at_once() {
    // Longer than a record, a pipe's whole write, and a disk block.
    let bench = Bench::new("printf -v long '%09000d' 0\nfor i in {1..300}; do echo $i; echo $long.$i; done");
    let output = bench.run(3, &[], &[]);
    let long = "0".repeat(9000);
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    let mut expected = Vec::new();
    for prefix in ["", "[rank 1] ", "[rank 2] "] {
        for i in 1..=300 {
            expected.extend([format!("{prefix}{i}"), format!("{prefix}{long}.{i}")]);
        }
    }
    lines.sort();
    expected.sort();
    assert!(lines == expected, "{} of {} lines, or broken ones", lines.len(), expected.len());
}

#[test]
fn without_a_run_directory_logs_stay_only_after_a_failure() {
    let bench = Bench::new("echo text; exit $1");
    let left = || {
        let entries = fs::read_dir(bench.path()).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with("ilm-launch-"))
    };
    bench.run(1, &[], &["0"]);
    assert_eq!(left(), None);
    let output = bench.run(1, &[], &["4"]);
    let log = format!("{}/logs/rank-0.log", left().expect("logs are kept"));
    assert_eq!(bench.read(&log), "text\n");
    assert!(text(&output.stderr).contains(&log));
}

#[test]
fn ranks_run_on_the_launchers_cores_or_on_their_own() {
    let bench = Bench::new("grep Cpus_allowed_list /proc/self/status");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
    assert_eq!(text(&bench.run(1, &[], &[]).stdout).trim(), own);

    let cores = launcher::machine::usable_cores().len();
    let bound = text(&bench.run(cores, &["--cpu-bind", "cores"], &[]).stdout);
    let distinct: BTreeSet<&str> = bound.lines().map(|line| line.rsplit('\t').next().unwrap()).collect();
    assert_eq!(distinct.len(), cores, "{bound}");
}

#[test]
fn more_ranks_than_cores_can_be_started() {
    let ranks = launcher::machine::usable_cores().len() + 2;
    let bench = Bench::new("echo $OMPI_COMM_WORLD_SIZE");
    let output = bench.run(ranks, &[], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).lines().all(|line| line.ends_with(&ranks.to_string())));
    assert_eq!(text(&output.stdout).lines().count(), ranks);
}
