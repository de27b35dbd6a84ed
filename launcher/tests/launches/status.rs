//! `ilm-launch status` on runs in progress, dead ones, and folders that hold no run.

use crate::support::{Bench, LAUNCHER, fresh_beat, send, text, wait_until};
use serde_json::Value;
use std::fs;
use std::process::Command;

const RUN: &[&str] = &["train", "--run-dir", "run"];

fn status(bench: &Bench, options: &[&str]) -> String {
    let mut command = Command::new(LAUNCHER);
    command.args(["status", "--run-dir", "run"]).args(options).current_dir(bench.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn json(bench: &Bench) -> Value {
    serde_json::from_str(&status(bench, &["--json"])).unwrap()
}

fn write(bench: &Bench, name: &str, content: &str) {
    let path = bench.path().join("run").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// What a training run leaves; the last line is just being written.
fn write_progress(bench: &Bench) {
    write(bench, "config.toml", "seed = 1   # default\ntrainer.max_steps = 2800   # experiment\n");
    write(
        bench,
        "metrics.jsonl",
        "{\"step\":119,\"loss\":2.0,\"examples_per_s\":40.0,\"step_s\":0.5}\n\
         {\"step\":120,\"loss\":1.25,\"examples_per_s\":40.0,\"step_s\":0.5}\n{\"step\":121,\"lo",
    );
    write(bench, "checkpoints/step-000000100/manifest.json", "{}");
}

#[test]
fn an_empty_folder_and_none() {
    let bench = Bench::new("");
    fs::create_dir(bench.path().join("run")).unwrap();
    assert_eq!(status(&bench, &[]), "run: nothing has run here\n");
    assert_eq!(json(&bench)["state"], "idle");
    let output = Command::new(LAUNCHER).args(["status", "--run-dir", "/no/run"]).output().unwrap();
    let message = "ilm-launch: --run-dir /no/run is not a directory; name the folder that holds the run's config.toml\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(2), message));
}

#[test]
fn a_run_in_progress_tells_ranks_progress_and_checkpoint() {
    let bench = Bench::new("beat run 120\necho >> ready\nexec sleep 1000");
    write_progress(&bench);
    let launcher = bench.start_with(2, &[], RUN);
    let found = json(&bench);
    // The shell that wrote the heartbeats became the sleep: the same process.
    let facts = [
        ("/state", Value::from("running")),
        ("/step", 120.into()),
        ("/max_steps", 2800.into()),
        ("/loss", 1.25.into()),
        ("/examples_per_s", 40.0.into()),
        ("/checkpoint/step", 100.into()),
        ("/ranks/1/state", "alive".into()),
        ("/ranks/1/last_collective/sequence", 1200.into()),
        ("/launch/ranks", 2.into()),
        ("/last_end", Value::Null),
    ];
    for (pointer, expected) in facts {
        assert_eq!(found.pointer(pointer), Some(&expected), "{pointer} of {found}");
    }
    let shown = status(&bench, &[]);
    for part in
        ["run: running, 2 ranks launched on ", "step        120 of 2800, loss 1.2500, 40.0 examples/s, "]
    {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(shown.contains("checkpoint  step 100, ") && shown.contains("ranks       2 alive\n"), "{shown}");

    send("-KILL", launcher.id());
    launcher.wait_with_output().unwrap();
    wait_until("all processes are gone", || bench.processes().is_empty());
    let found = json(&bench);
    assert_eq!((&found["state"], &found["ranks"][0]["state"]), (&"lost".into(), &"gone".into()));
    assert!(status(&bench, &[]).contains("its launcher or machine was killed"));
}

#[test]
fn an_ended_run_tells_how_and_an_old_heartbeat_is_stale() {
    let bench = Bench::new("exit 3");
    write_progress(&bench);
    bench.run(1, &[], RUN);
    let beat = |rank: u64| {
        format!(r#"{{"rank":{rank},"pid":1,"host":"gone","phase":"save","step":7,"updated_unix_ms":1000}}"#)
    };
    write(&bench, "heartbeats/rank-0.json", &beat(0));
    // Of an earlier run with more ranks, and one that is being written.
    write(&bench, "heartbeats/rank-5.json", &beat(5));
    write(&bench, "heartbeats/rank-1.json", "{\"rank\":1,");
    let shown = status(&bench, &[]);
    assert!(shown.starts_with("run: ended, 1 rank launched on "), "{shown}");
    assert!(shown.contains("ranks       1 stale\n  rank 0 stale, heartbeat "), "{shown}");
    assert!(shown.ends_with(" ago with exit code 3: rank 0 failed first: exit code 3 (data)\n"), "{shown}");
    let found = json(&bench);
    assert_eq!((&found["state"], &found["last_end"]["exit_code"]), (&"ended".into(), &3.into()));
}

#[test]
fn a_run_that_waits_for_its_restart_says_so() {
    let bench = Bench::new("echo >> ready\nexit 5");
    let options = ["--max-restarts", "1", "--restart-delay", "100000"];
    let launcher = bench.start_with(1, &options, RUN);
    wait_until("the end is recorded", || bench.read("run/launcher.json").contains(r#""exit_code":5"#));
    assert_eq!(json(&bench)["state"], "waiting");
    send("-TERM", launcher.id());
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(75));
    assert_eq!(json(&bench)["state"], "ended");
}

#[test]
fn a_run_without_the_launcher_is_seen_by_its_heartbeats() {
    let bench = Bench::new("");
    write_progress(&bench);
    assert!(status(&bench, &[]).starts_with("run: not running\n"));
    write(&bench, "heartbeats/rank-0.json", &fresh_beat(std::process::id()));
    assert_eq!(json(&bench)["state"], "running");
}

#[test]
fn a_rank_that_lives_on_after_a_recorded_end_is_a_run_that_goes_on() {
    let bench = Bench::new("exit 3");
    bench.run(1, &[], RUN);
    assert_eq!(json(&bench)["state"], "ended");
    write(&bench, "heartbeats/rank-0.json", &fresh_beat(std::process::id()));
    assert_eq!(json(&bench)["state"], "running");
}

#[test]
fn jobs_beside_a_run_and_refused_launches_leave_its_record() {
    let worker = "[ $1 = evaluate ] && exit 3\n[ $# = 5 ] && exit $5\necho >> ready\nuntil [ -e go ]; do sleep 0.1; done";
    let bench = Bench::new(worker);
    let refused = |code| [RUN, &["refused", code]].concat();
    let launcher = bench.start_with(1, &[], RUN);
    let going = bench.read("run/launcher.json");
    for args in [&["evaluate", "--run-dir", "run"][..], &refused("2"), &refused("4")] {
        // Not `run`, which would wait for the processes of the other one.
        bench.command(1, &[], args).output().unwrap();
        assert_eq!(bench.read("run/launcher.json"), going, "{args:?}");
    }
    fs::write(bench.path().join("go"), "").unwrap();
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(0));
    let ended = bench.read("run/launcher.json");
    assert!(ended.contains(r#""exit_code":0"#), "{ended}");
    for args in [&["evaluate", "--run-dir", "run"][..], &refused("2")] {
        bench.run(1, &[], args);
        assert_eq!(bench.read("run/launcher.json"), ended, "{args:?}");
    }
    // This one had the directory for itself, and what it found there was no good.
    bench.run(1, &[], &refused("4"));
    assert!(bench.read("run/launcher.json").contains(r#""exit_code":4"#));
}
