//! Other world sizes see the same global batches and compute the same losses.

use std::collections::BTreeMap;
use std::path::Path;

use crate::program::{digest_entries, figures, mpirun_into, ranks, run, tiny_star, worker};

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

fn losses_are_close(one: &Path, other: &Path, steps: usize) -> bool {
    let [one, other] = [one, other].map(|run_dir| figures(run_dir, "loss"));
    one.len() >= steps
        && other.len() == steps
        && one.iter().zip(&other).all(|(one, other)| (one - other).abs() < 1e-5)
}

/// Runs on so many ranks up to a step. The schedule is constant, so a run cut short is the beginning of a longer one.
fn go_on(world_size: usize, run_dir: &Path, steps: u64, settings: &[&str]) {
    let mut command = ranks(world_size);
    command.args(tiny_star(run_dir)).args(["model.dropout=0.0"]).args(settings);
    run(command.arg(format!("trainer.max_steps={steps}"))).expect(0);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new folder");
    for entry in std::fs::read_dir(from).expect("readable folder") {
        let path = entry.expect("readable folder").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[test]
fn a_checkpoint_of_four_ranks_goes_on_on_any_number_and_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let (reference, begun) = (path("reference"), path("begun"));
    go_on(4, &reference, 20, &[]);
    go_on(4, &begun, 7, &[]);
    let samples = digest_entries(&reference, "samples");
    for world_size in [1, 2, 3, 8] {
        let resumed = path(&format!("on-{world_size}"));
        copy(&begun, &resumed);
        go_on(world_size, &resumed, 17, &[]);
        assert_eq!(digest_entries(&resumed, "samples"), samples[..17], "samples on {world_size} ranks");
        assert!(losses_are_close(&reference, &resumed, 17), "losses on {world_size} ranks");
        go_on(4, &resumed, 20, &[]);
        assert_eq!(digest_entries(&resumed, "samples"), samples, "samples back on 4 ranks");
        assert!(losses_are_close(&reference, &resumed, 20), "losses back on 4 ranks");
        let computed_by = digest_entries(&resumed, "ranks");
        assert_eq!([&computed_by[6], &computed_by[16], &computed_by[19]], [4, world_size, 4]);
    }
}

#[test]
fn products_in_bf16_and_back_go_on_with_the_same_samples_and_nearly_the_same_losses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reference, changed) = (folder.path().join("reference"), folder.path().join("changed"));
    go_on(2, &reference, 9, &[]);
    for (steps, precision) in [(3, "fp32"), (6, "bf16"), (9, "fp32")] {
        go_on(2, &changed, steps, &[&format!("trainer.precision={precision}")]);
    }
    assert_eq!(digest_entries(&reference, "samples"), digest_entries(&changed, "samples"));
    let [exact, rounded] = [&reference, &changed].map(|run_dir| figures(run_dir, "loss"));
    assert_eq!(exact[..3], rounded[..3]);
    assert_ne!(exact[3..], rounded[3..], "nothing was rounded");
    // bf16 has 8 bits.
    assert!(exact.iter().zip(&rounded).all(|(exact, rounded)| (exact / rounded - 1.0).abs() < 0.02));
}
