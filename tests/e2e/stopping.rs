//! A signal ends a run with a checkpoint and exit code 75, and the run goes on as if nothing had been; a second SIGINT ends it at once.

use std::path::Path;
use std::process::{Child, Command};

use crate::program::{
    Signal, checkpoint_bits, checkpoint_steps, heartbeat, kill, last_step, ranks, run, start, tiny_star,
    wait, wait_until,
};
use crate::slow_disk::SlowDisk;

fn command(world_size: usize, run_dir: &Path) -> Command {
    let mut command = ranks(world_size);
    command.args(tiny_star(run_dir)).args(["trainer.max_steps=400", "checkpoint.every_n_steps=1000"]);
    command
}

fn assert_stops_and_goes_on(world_size: usize, signal: Signal) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reference, stopped) = (folder.path().join("reference"), folder.path().join("stopped"));
    run(&mut command(world_size, &reference)).expect(0);

    let child = start(&mut command(world_size, &stopped));
    wait_until("some steps", || last_step(&stopped) >= 5);
    kill(signal, child.id());
    wait(child).expect(75);
    let steps = checkpoint_steps(&stopped);
    assert_eq!(steps, [last_step(&stopped)], "the step it stopped at is saved");

    run(&mut command(world_size, &stopped)).expect(0);
    assert!(checkpoint_bits(&reference, 400) == checkpoint_bits(&stopped, 400), "the final states differ");
}

#[test]
fn sigterm_saves_and_exits_75() {
    assert_stops_and_goes_on(1, Signal::SIGTERM);
}

#[test]
fn sigint_saves_and_exits_75() {
    assert_stops_and_goes_on(1, Signal::SIGINT);
}

#[test]
fn usr1_to_mpirun_saves_on_all_ranks_and_exits_75() {
    assert_stops_and_goes_on(2, Signal::SIGUSR1);
}

/// A run that the signal has stopped and that is still saving, which takes some of these syncs.
fn stopped_and_saving(disk: &SlowDisk, signal: Signal, sync_ms: &str) -> Child {
    let mut command = disk.training(1);
    command.args(["trainer.max_steps=100000", "checkpoint.every_n_steps=100000"]);
    let child = start(command.arg("checkpoint.asynchronous=false").env("ILM_SYNC_MS", sync_ms));
    wait_until("some steps", || last_step(&disk.run_dir()) >= 3);
    disk.slow_syncs();
    kill(signal, child.id());
    wait_until("the save", || heartbeat(&disk.run_dir(), 0)["phase"] == "save");
    child
}

#[test]
fn the_first_sigint_after_another_signal_lets_it_save() {
    let disk = SlowDisk::new();
    let child = stopped_and_saving(&disk, Signal::SIGUSR1, "1500");
    kill(Signal::SIGINT, child.id());
    wait(child).expect(75);
    assert_eq!(checkpoint_steps(&disk.run_dir()), [last_step(&disk.run_dir())]);
}

#[test]
fn a_second_sigint_ends_the_run_at_once() {
    let disk = SlowDisk::new();
    let child = stopped_and_saving(&disk, Signal::SIGINT, "600000");
    kill(Signal::SIGINT, child.id());
    wait(child).expect(130);
    assert_eq!(checkpoint_steps(&disk.run_dir()), [0u64; 0], "nothing was waited for");
}
