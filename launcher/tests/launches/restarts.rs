//! A run that fails in a way that may pass is started again, as often as was allowed, and resumes what it saved.

use crate::support::{Bench, send, text, wait_until};
use std::process::Output;

/// Counts the attempt; `$ATTEMPT` is its number from 1 on.
const COUNT: &str = "echo >> attempts.$RANK\nATTEMPT=$(wc -l < attempts.$RANK)\n";

const RUN: &[&str] = &["train", "--run-dir", "run"];

fn bench(worker: &str) -> Bench {
    Bench::new(&format!("{COUNT}{worker}"))
}

fn attempts(bench: &Bench) -> usize {
    bench.read("attempts.0").lines().count()
}

fn restarts(most: &str) -> [&str; 4] {
    ["--max-restarts", most, "--restart-delay", "0"]
}

/// The lines in which restarts are announced.
fn announced(output: &Output) -> Vec<String> {
    let report = text(&output.stderr);
    report.lines().filter(|line| line.contains("starting again")).map(str::to_owned).collect()
}

#[test]
fn a_killed_rank_costs_a_restart_and_not_the_run() {
    let bench =
        bench("if [ $RANK = 1 ] && [ $ATTEMPT -lt 3 ]; then kill -9 $$; fi\n[ $ATTEMPT = 3 ] || sleep 1000");
    let output = bench.run(2, &restarts("2"), RUN);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(attempts(&bench), 3);
    let because = "because rank 1 failed first: killed by signal 9 (SIGKILL)";
    let expected = [("1 more restart", "0 s"), ("0 more restarts", "0 s")].map(|(left, delay)| {
        format!("ilm-launch: starting again in {delay} {because} ({left} without a new checkpoint)")
    });
    assert_eq!(announced(&output), expected);
    let record = bench.read("run/launcher.json");
    assert!(record.contains(r#""restarts":2"#) && record.contains(r#""exit_code":0"#), "{record}");
}

#[test]
fn without_permission_there_is_no_restart() {
    let bench = bench("exit 5");
    assert_eq!(bench.run(1, &[], RUN).status.code(), Some(5));
    assert_eq!(attempts(&bench), 1);
}

#[test]
fn the_last_attempts_code_is_kept_when_restarts_run_out() {
    let bench = bench("[ $ATTEMPT = 1 ] && exit 5\nexit 101");
    let output = bench.run(1, &restarts("1"), RUN);
    assert_eq!((output.status.code(), attempts(&bench)), (Some(101), 2));
}

#[test]
fn mistakes_are_not_repeated() {
    for code in [2, 3, 4, 6] {
        let bench = bench(&format!("exit {code}"));
        let output = bench.run(1, &restarts("3"), RUN);
        assert_eq!((output.status.code(), attempts(&bench)), (Some(code), 1));
    }
}

#[test]
fn a_failed_mpirun_is_started_again() {
    let bench = bench("exit 0");
    let mut command = bench.command(1, &restarts("2"), RUN);
    let output = command.env("OMPI_MCA_oob_tcp_if_include", "no-such-interface").output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(announced(&output).len(), 2);
}

#[test]
fn progress_gives_new_restarts_and_fresh_is_said_once() {
    let bench = bench("echo $* >> args\n[ $ATTEMPT -gt 3 ] || save run $ATTEMPT\nexit 5");
    let output = bench.run(1, &restarts("1"), &["train", "--fresh", "--run-dir", "run"]);
    // Three attempts save, the fourth is the restart that the third earned, and the next one's is the last.
    assert_eq!((output.status.code(), attempts(&bench)), (Some(5), 4));
    let resumed = "train --run-dir run\n".repeat(3);
    assert_eq!(bench.read("args"), format!("train --fresh --run-dir run\n{resumed}"));
}

#[test]
fn ranks_preempted_behind_the_launchers_back_go_on() {
    let bench = bench("[ $ATTEMPT = 1 ] && exit 75\nexit 0");
    assert_eq!(bench.run(2, &restarts("1"), RUN).status.code(), Some(0));
    assert_eq!(attempts(&bench), 2);
}

#[test]
fn a_launcher_told_to_stop_starts_nothing_again() {
    let bench = bench("trap 'exit 75' USR1\necho >> ready\nwhile :; do sleep 0.1; done");
    let launcher = bench.start_with(2, &restarts("9"), RUN);
    send("-USR1", launcher.id());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!((output.status.code(), attempts(&bench)), (Some(75), 1));
    assert_eq!(announced(&output), Vec::<String>::new());
}

#[test]
fn a_wait_for_a_restart_can_be_ended() {
    let bench = bench("echo >> ready\nkill -9 $$");
    let launcher = bench.start_with(1, &["--max-restarts", "1", "--restart-delay", "100000"], RUN);
    wait_until("the end is recorded", || bench.read("run/launcher.json").contains(r#""exit_code":137"#));
    send("-TERM", launcher.id());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!((output.status.code(), attempts(&bench)), (Some(75), 1));
    assert_eq!(announced(&output).len(), 1);
    assert!(text(&output.stderr).contains("told to stop, so there is no restart"));
}
