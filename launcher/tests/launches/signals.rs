//! A request to end reaches the ranks as SIGUSR1 with all the time they need to save; the second one is final.

use crate::support::{Bench, make_executable, send, text, wait_until};
use std::fs;
use std::process::Stdio;

/// Rank 1 saves for longer than mpirun would let it live after the end of rank 0.
const SAVING: &str = "trap 'sleep $((RANK * 4)); echo $RANK >> saved; exit 75' USR1
trap 'echo $RANK >> terminated; exit 1' TERM
echo >> ready
while :; do sleep 0.1; done";

fn every_rank_saves_on(signal: &str) {
    let bench = Bench::new(SAVING);
    let launcher = bench.start(2);
    send(signal, launcher.id());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert_eq!(bench.read("saved"), "0\n1\n");
    assert_eq!(bench.read("terminated"), "");
    assert!(text(&output.stderr).contains("stopped after saving a checkpoint (exit code 75)"));
    assert_eq!(bench.processes(), Vec::<u32>::new());
}

#[test]
fn sigterm_lets_every_rank_save() {
    every_rank_saves_on("-TERM");
}

#[test]
fn sigint_lets_every_rank_save() {
    every_rank_saves_on("-INT");
}

#[test]
fn sigusr1_lets_every_rank_save() {
    every_rank_saves_on("-USR1");
}

#[test]
fn a_second_signal_ends_ranks_that_do_not_stop() {
    let bench =
        Bench::new("trap 'echo >> asked' USR1\ntrap '' TERM\necho >> ready\nwhile :; do sleep 0.1; done");
    let launcher = bench.start(2);
    // SIGUSR1 is no request to end, however often it comes.
    for signal in ["-USR1", "-USR1", "-TERM"] {
        let asked = bench.read("asked").len();
        send(signal, launcher.id());
        wait_until("both ranks were asked", || bench.read("asked").len() >= asked + 2);
    }
    send("-INT", launcher.id());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("ended by a second SIGINT without saving"));
    assert_eq!(bench.processes(), Vec::<u32>::new());
}

/// A launcher that is told to stop while mpirun starts, and what it says in the end.
fn told_to_stop_at_the_start(worker: &str) -> String {
    let bench = Bench::new(worker);
    let slow_mpirun = bench.path().join("mpirun");
    let script = "#!/bin/sh\necho >> starting\nsleep 1\nPATH=${PATH#*:}\nexec mpirun \"$@\"";
    fs::write(&slow_mpirun, script).unwrap();
    make_executable(&slow_mpirun);
    let path = format!("{}:{}", bench.path().display(), std::env::var("PATH").unwrap());
    let mut command = bench.command(2, &["--max-restarts", "1"], &["train", "--run-dir", "run"]);
    let launcher = command.env("PATH", path).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("mpirun starts", || !bench.read("starting").is_empty());
    send("-TERM", launcher.id());
    let output = launcher.wait_with_output().unwrap();
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{report}");
    assert!(bench.read("run/launcher.json").contains(r#""exit_code":75"#), "{report}");
    report
}

const NOTHING_TO_SAVE: &str = "ilm-launch: stopped before there was anything to save (exit code 75)";

#[test]
fn a_request_while_ranks_start_waits_for_them() {
    let report = told_to_stop_at_the_start("trap 'exit 75' USR1\nwhile :; do sleep 0.1; done");
    // A script cannot promise that its trap is set by the time at which it is asked.
    assert!(report.contains("stopped after saving") || report.contains(NOTHING_TO_SAVE), "{report}");
}

#[test]
fn ranks_that_do_not_listen_yet_have_nothing_to_save() {
    // A shell tells what its command died of by an exit code.
    for worker in ["exec sleep 1000", "(trap - USR1; exec sleep 1000)\nexit $?"] {
        let report = told_to_stop_at_the_start(worker);
        assert!(report.contains(NOTHING_TO_SAVE), "{report}");
        assert!(!report.contains("failed first") && !report.contains("starting again"), "{report}");
    }
    // Nobody asked for the end of this one.
    let output = Bench::new("kill -USR1 $$\nsleep 1000").run(1, &[], &[]);
    assert_eq!(output.status.code(), Some(138), "{}", text(&output.stderr));
}
