//! A signal to any one rank is noticed in every phase; what is done is saved if there is time, and the exit code is 75.

use std::fs;
use std::path::Path;
use std::process::Child;

use crate::program::{
    Signal, checkpoint_bits, checkpoint_steps, heartbeat, kill, last_step, mpirun, run, start, tiny_star,
    wait, wait_until, worker, workers_below,
};
use crate::slow_disk::SlowDisk;

const NEVER: &str = "checkpoint.every_n_steps=1000000";

/// Tells one rank to stop, and not the first.
fn signal_one_rank(child: &Child) {
    kill(Signal::SIGUSR1, workers_below(child.id())[1]);
}

fn phase_is(run_dir: &Path, phase: &str) -> bool {
    heartbeat(run_dir, 0)["phase"] == phase
}

#[test]
fn a_signal_to_one_rank_ends_a_validation_of_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = mpirun(2);
    command.args(tiny_star(folder.path())).args(["trainer.max_steps=1000000", NEVER]);
    // It would take hours.
    command.args(["trainer.val_check_interval=5", "data.star.validation_size=10000000"]);
    let child = start(&mut command);
    wait_until("the validation", || phase_is(folder.path(), "validate"));
    signal_one_rank(&child);
    wait(child).expect(75);
    assert_eq!((last_step(folder.path()), checkpoint_steps(folder.path())), (5, vec![5]));
    assert!(
        !fs::exists(folder.path().join("validation.jsonl")).unwrap_or(true) || {
            fs::read_to_string(folder.path().join("validation.jsonl")).is_ok_and(|text| text.is_empty())
        }
    );
}

#[test]
fn a_signal_to_one_rank_ends_an_evaluation_of_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(worker().args(tiny_star(folder.path())).arg("trainer.max_steps=2")).expect(0);
    let mut command = mpirun(2);
    command.args(["evaluate", "--run-dir"]).arg(folder.path()).arg("data.star.test_size=10000000");
    let child = start(&mut command);
    wait_until("the evaluation", || phase_is(folder.path(), "evaluate"));
    signal_one_rank(&child);
    let finished = wait(child).expect(75);
    assert!(finished.stdout.contains("stopped by a signal before the evaluation was done"), "{finished:?}");
}

#[test]
fn a_signal_ends_a_step_that_others_are_in_while_a_rank_waits_for_data() {
    let disk = SlowDisk::new();
    let until = |steps: u64| format!("trainer.max_steps={steps}");
    let child = start(disk.training(2).arg(until(100_000)));
    wait_until("some steps", || last_step(&disk.run_dir()) >= 3);
    disk.hang_reads();
    wait_until("a rank that waits for data", || heartbeat(&disk.run_dir(), 1)["phase"] == "data");
    wait_until("a rank that waits for it", || heartbeat(&disk.run_dir(), 0)["waits"] == true);
    // Rank 0 is inside the step; only by its own thread can it tell the other one.
    kill(Signal::SIGUSR1, workers_below(child.id())[0]);
    let finished = wait(child).expect(75);
    let stopped = last_step(&disk.run_dir());
    assert_eq!(checkpoint_steps(&disk.run_dir()), [stopped], "the state before the step is saved");
    assert!(finished.stdout.contains(&format!("stopped by a signal after step {stopped}")), "{finished:?}");

    // The run goes on as if nothing had been.
    disk.resume_reads();
    let end = stopped + 7;
    run(disk.training(2).arg(until(end))).expect(0);
    let resumed = checkpoint_bits(&disk.run_dir(), end);
    run(disk.training(2).arg(until(end)).arg("--fresh")).expect(0);
    assert!(resumed == checkpoint_bits(&disk.run_dir(), end), "the final states differ");
}

#[test]
fn a_save_that_a_signal_meets_is_finished_and_no_step_is_made_after_it() {
    let disk = SlowDisk::new();
    disk.slow_syncs();
    let mut command = disk.training(2);
    command.args(["trainer.max_steps=100000", "checkpoint.every_n_steps=40"]);
    let child = start(command.arg("checkpoint.asynchronous=false"));
    wait_until("a save", || phase_is(&disk.run_dir(), "save"));
    signal_one_rank(&child);
    wait(child).expect(75);
    assert_eq!((last_step(&disk.run_dir()), checkpoint_steps(&disk.run_dir())), (40, vec![40]));
}

#[test]
fn no_save_is_begun_that_would_not_end_in_time() {
    let disk = SlowDisk::new();
    disk.slow_syncs();
    let mut command = disk.training(2);
    command.args(["trainer.max_steps=100000", "checkpoint.every_n_steps=150"]).env("ILM_STOP_LEAD_SECS", "1");
    let child = start(command.arg("checkpoint.asynchronous=false"));
    wait_until("steps after a save", || last_step(&disk.run_dir()) >= 152);
    kill(Signal::SIGUSR1, child.id());
    let finished = wait(child).expect(75);
    let stopped = last_step(&disk.run_dir());
    assert!((152..300).contains(&stopped), "stopped at {stopped}");
    assert_eq!(checkpoint_steps(&disk.run_dir()), [150]);
    assert!(finished.stderr.contains("warning: no checkpoint is begun: saving took up to"), "{finished:?}");
    assert!(finished.stderr.contains("the newest checkpoint is that of step 150"), "{finished:?}");
}

#[test]
fn which_signals_stop_a_run_is_a_setting() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = worker();
    command.args(tiny_star(folder.path())).args(["trainer.max_steps=1000000", NEVER]);
    let child = start(command.arg(r#"trainer.stop_signals=["USR2"]"#));
    wait_until("some steps", || last_step(folder.path()) >= 5);
    kill(Signal::SIGUSR2, child.id());
    wait(child).expect(75);
    assert_eq!(checkpoint_steps(folder.path()), [last_step(folder.path())]);

    let child = start(&mut command);
    let before = last_step(folder.path());
    wait_until("more steps", || last_step(folder.path()) > before);
    kill(Signal::SIGTERM, child.id());
    assert_eq!(wait(child).code, -1, "SIGTERM does what it usually does");

    let mut command = worker();
    command.args(tiny_star(folder.path())).arg(r#"trainer.stop_signals=["KILL"]"#);
    assert!(run(&mut command).expect(2).sentence().contains("trainer.stop_signals"));
}
