//! Other world sizes see the same global batches and compute the same losses.

use std::collections::BTreeMap;
use std::path::Path;

use crate::program::{figures, mpirun_into, ranks, run, tiny_star, worker};

const STEPS: usize = 20;

/// Losses of 20 steps, and per position what was logged of the sample there.
fn train(world_size: usize, run_dir: &Path) -> (Vec<f64>, BTreeMap<u64, String>) {
    let logs = run_dir.with_extension("logs");
    let mut command = if world_size == 1 { worker() } else { mpirun_into(&logs, world_size) };
    command.args(tiny_star(run_dir)).env("RUST_LOG", "data_pipeline::drop=debug");
    command.args(["model.dropout=0.0", "data.prefetch_steps=1"]).arg(format!("trainer.max_steps={STEPS}"));
    let finished = run(&mut command).expect(0);
    let text = if world_size == 1 { finished.stderr } else { error_files(&logs, world_size) };
    let samples = text.lines().filter_map(|line| {
        let (_, fields) = line.split_once("position=")?;
        let (position, sample) = fields.split_once(' ')?;
        Some((position.parse().ok()?, sample.to_string()))
    });
    (figures(run_dir, "loss"), samples.collect())
}

/// What all ranks of one job have written to their files of errors.
fn error_files(folder: &Path, world_size: usize) -> String {
    let read = |rank| std::fs::read_to_string(folder.join(format!("1/rank.{rank}/stderr")));
    (0..world_size).map(|rank| read(rank).expect("a file of the rank's own")).collect()
}

fn assert_alike(one: &(Vec<f64>, BTreeMap<u64, String>), other: &(Vec<f64>, BTreeMap<u64, String>)) {
    assert_eq!(one.0.len(), STEPS);
    for (step, (a, b)) in one.0.iter().zip(&other.0).enumerate() {
        assert!((a - b).abs() < 1e-5, "step {}: {a} {b}", step + 1);
    }
    let batch = 8;
    for position in 0..(STEPS as u64 * batch) {
        let sample = one.1.get(&position).unwrap_or_else(|| panic!("position {position} is not logged"));
        assert!(sample.contains("dropped="), "{sample}");
        assert_eq!(Some(sample), other.1.get(&position), "position {position}");
    }
}

#[test]
fn accumulation_on_one_rank_equals_two_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let one = train(1, &folder.path().join("one"));
    let two = train(2, &folder.path().join("two"));
    assert_alike(&one, &two);
    // Three ranks divide neither the lanes nor the batch.
    assert_alike(&one, &train(3, &folder.path().join("three")));
}

#[test]
fn a_checkpoint_resumes_on_another_number_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let reference = train(1, &folder.path().join("reference"));
    let run_dir = folder.path().join("changed");
    let mut first = ranks(2);
    // The schedule is constant, so a run cut short by max_steps is the beginning of the longer one.
    run(first.args(tiny_star(&run_dir)).args(["model.dropout=0.0", "trainer.max_steps=7"])).expect(0);
    let (losses, _) = train(1, &run_dir);
    for (step, (a, b)) in reference.0.iter().zip(&losses).enumerate() {
        assert!((a - b).abs() < 1e-5, "step {}: {a} {b}", step + 1);
    }
    assert_eq!(losses.len(), STEPS);
}
