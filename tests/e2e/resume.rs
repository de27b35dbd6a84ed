//! A killed run, started again, ends with the bits of a run that was never killed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{
    Signal, checkpoint_bits, checkpoint_steps, children, figures, kill, last_step, ranks, run, start,
    tiny_star, wait, wait_until,
};

const STEPS: u64 = 24;

/// An epoch is 5 steps of 8 graphs, so kills fall inside epochs and on their ends.
fn command(world_size: usize, run_dir: &Path, steps: u64) -> Command {
    let mut command = ranks(world_size);
    command.args(tiny_star(run_dir)).arg(format!("trainer.max_steps={steps}"));
    command.args(["data.star.train_size=40", "model.dropout=0.1", "checkpoint.every_n_steps=3"]);
    command.arg("trainer.checksum_every_n_steps=4");
    command
}

/// Starts the run and kills all its ranks with SIGKILL as soon as `step` is in the metrics.
fn kill_after(world_size: usize, run_dir: &Path, step: u64) {
    let child = start(&mut command(world_size, run_dir, STEPS));
    wait_until("the step to kill at", || last_step(run_dir) >= step);
    let victims = if world_size == 1 { vec![child.id()] } else { children(child.id()) };
    assert_eq!(victims.len(), world_size);
    for id in victims {
        kill(Signal::SIGKILL, id);
    }
    let finished = wait(child);
    assert_ne!(finished.code, 0, "the run was over before it could be killed");
}

fn uninterrupted(world_size: usize, run_dir: &Path) {
    run(&mut command(world_size, run_dir, STEPS)).expect(0);
}

fn assert_same_end(expected: &Path, found: &Path) {
    assert_eq!(checkpoint_steps(found).last(), Some(&STEPS));
    assert!(checkpoint_bits(expected, STEPS) == checkpoint_bits(found, STEPS), "the final states differ");
    let digest = |run_dir: &Path| fs::read_to_string(run_dir.join("digest.jsonl")).expect("a digest");
    assert!(digest(expected) == digest(found), "the digests differ");
    for name in ["step", "loss", "grad_norm", "lr", "epoch"] {
        assert_eq!(figures(expected, name), figures(found, name), "{name} of the steps differ");
    }
}

#[test]
fn killed_at_any_step_ends_with_the_same_bits() {
    for world_size in [1, 2] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let reference = folder.path().join("reference");
        uninterrupted(world_size, &reference);
        // Before the first checkpoint, on one, and between two.
        for step in [1, 6, 13] {
            let killed = folder.path().join(format!("killed-{step}"));
            kill_after(world_size, &killed, step);
            uninterrupted(world_size, &killed);
            assert_same_end(&reference, &killed);
        }
    }
}

#[test]
fn killed_twice_in_an_epoch_and_at_its_end_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reference, killed) = (folder.path().join("reference"), folder.path().join("killed"));
    uninterrupted(2, &reference);
    // Steps 11 to 15 are the third epoch; its end, step 15, is also a checkpoint.
    for step in [11, 13, 15] {
        kill_after(2, &killed, step);
    }
    uninterrupted(2, &killed);
    assert_same_end(&reference, &killed);
}

#[test]
fn a_finished_run_is_left_alone_and_a_longer_one_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (short, long) = (folder.path().join("short"), folder.path().join("long"));
    uninterrupted(1, &long);
    run(&mut command(1, &short, 10)).expect(0);
    let again = run(&mut command(1, &short, 10)).expect(0);
    assert!(again.stdout.contains("finished at step 10"), "{}", again.stdout);
    let longer = run(&mut command(1, &short, STEPS)).expect(0);
    assert!(longer.stdout.contains("changed since: trainer.max_steps = 24 was 10"), "{}", longer.stdout);
    assert_same_end(&long, &short);
}

#[test]
fn fresh_starts_anew_and_keeps_the_old_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path().join("run");
    run(&mut command(1, &run_dir, 6)).expect(0);
    let before = checkpoint_bits(&run_dir, 6);
    run(command(1, &run_dir, 6).arg("--fresh")).expect(0);
    assert!(before == checkpoint_bits(&run_dir, 6), "the same seed gives the same run");
    assert!(before == checkpoint_bits(&run_dir.join("previous-1"), 6), "the old run is kept");
    assert_eq!(figures(&run_dir, "step").len(), 6);
}
