//! A signal ends a run with a checkpoint and exit code 75, and the run goes on as if nothing had been.

use std::path::Path;
use std::process::Command;

use crate::program::{
    Signal, checkpoint_bits, checkpoint_steps, kill, last_step, ranks, run, start, tiny_star, wait,
    wait_until,
};

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
