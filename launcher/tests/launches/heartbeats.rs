//! What a rank last said about itself is told when it dies, and a rank that says nothing any more ends the run.

use crate::support::{Bench, fresh_beat, host, send, text, wait_until};
use std::fs;

const RUN: &[&str] = &["train", "--run-dir", "run"];

#[test]
fn a_dead_rank_is_named_with_the_place_where_it_was() {
    let bench = Bench::new("beat run $((RANK + 6))\nif [ $RANK = 1 ]; then kill -9 $$; fi\nexec sleep 1000");
    let output = bench.run(2, &[], RUN);
    assert_eq!(output.status.code(), Some(137));
    let report = text(&output.stderr);
    assert!(report.contains("rank 1 failed first: killed by signal 9 (SIGKILL)\n"), "{report}");
    let place =
        format!(" on {}: phase train, step 7, last collective gradients (number 70, 64 bytes)\n", host());
    assert!(report.contains(&place), "{report}");
}

#[test]
fn the_heartbeat_of_an_earlier_run_is_not_mistaken_for_one() {
    let bench = Bench::new("exit 3");
    fs::create_dir_all(bench.path().join("run/heartbeats")).unwrap();
    let old = r#"{"rank":0,"pid":1,"host":"here","phase":"train","step":1,"updated_unix_ms":1}"#;
    fs::write(bench.path().join("run/heartbeats/rank-0.json"), old).unwrap();
    let report = text(&bench.run(1, &["--hang-timeout", "1"], RUN).stderr);
    assert!(report.contains("rank 0 failed first") && !report.contains("heartbeat"), "{report}");
}

#[test]
fn a_stopped_rank_is_named_and_the_run_is_ended_with_code_5() {
    // Rank 0 waits, without a heartbeat, as ranks of an older worker do.
    let bench = Bench::new(
        "[ $RANK = 0 ] || beat run 7\necho $$ >> ready\n[ $RANK = 0 ] || kill -STOP $$\nsleep 1000",
    );
    let output = bench.run(2, &["--hang-timeout", "2"], RUN);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{report}");
    assert!(
        report.contains("rank 1 hangs: its heartbeat has not changed for 2 s; the run was ended"),
        "{report}"
    );
    assert!(report.contains("phase train, step 7"), "{report}");
}

#[test]
fn a_hang_costs_a_restart() {
    let bench = Bench::new("echo >> attempts\nbeat run 7\n[ $(wc -l < attempts) = 2 ] && exit 0\nsleep 1000");
    let options = ["--hang-timeout", "1", "--max-restarts", "1", "--restart-delay", "0"];
    let output = bench.run(1, &options, RUN);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("starting again in 0 s because rank 0 hangs"));
}

#[test]
fn hanging_is_allowed_where_it_is_switched_off() {
    let bench = Bench::new("beat run 7\necho >> ready\nwhile [ ! -e go ]; do sleep 0.1; done");
    let launcher = bench.start_with(1, &["--hang-timeout", "0"], RUN);
    // Longer than the wrapper takes to notice a limit of one second, which 0 must not mean.
    std::thread::sleep(std::time::Duration::from_secs(3));
    fs::write(bench.path().join("go"), "").unwrap();
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn the_silence_of_a_run_beside_it_does_not_end_a_job() {
    let bench = Bench::new("mkdir -p run/heartbeats\necho >> ready\nuntil [ -e go ]; do sleep 0.1; done");
    let launcher = bench.start_with(1, &["--hang-timeout", "1"], &["evaluate", "--run-dir", "run"]);
    // Written once, after the job began, by a process that is none of its own.
    fs::write(bench.path().join("run/heartbeats/rank-0.json"), fresh_beat(std::process::id())).unwrap();
    // Longer than the wrapper takes to notice what stands still for a second.
    std::thread::sleep(std::time::Duration::from_secs(4));
    fs::write(bench.path().join("go"), "").unwrap();
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn a_hang_below_a_container_command_is_noticed_too() {
    // As a container's command would, the worker starts the one that beats.
    let bench = Bench::new("[ $1 = exec ] && { \"$0\" train & wait; exit; }\nbeat runs/e 7\nsleep 1000");
    let options = ["--hang-timeout", "1"];
    let output = bench.run(1, &options, &["exec", "ilm-worker", "--experiment", "e"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(bench.path().join("runs/e/launcher.json").exists(), "the run directory of an experiment");
    assert!(bench.path().join("runs/e/logs/rank-0.log").exists());
}

#[test]
fn a_stopped_mpirun_does_not_keep_the_launcher_from_ending() {
    let bench = Bench::new("trap '' USR1\necho >> ready\nwhile :; do sleep 0.1; done");
    let launcher = bench.start_with(2, &[], RUN);
    send("-STOP", bench.mpirun());
    for _ in 0..2 {
        send("-TERM", launcher.id());
    }
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    wait_until("all processes are gone", || bench.processes().is_empty());
}
