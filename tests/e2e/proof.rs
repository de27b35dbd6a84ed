//! A run can be checked afterwards: its steps trained again, its batches shown again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use crate::program::{Finished, checkpoint_steps, digest_entries, ranks, run, tiny_star};

const STEPS: u64 = 24;

/// A run on two ranks with checkpoints 21 and 24 in the end.
fn train(run_dir: &Path, settings: &[&str]) {
    let mut command = ranks(2);
    command.args(tiny_star(run_dir)).arg(format!("trainer.max_steps={STEPS}"));
    command.args(["data.star.train_size=40", "checkpoint.every_n_steps=3"]);
    command
        .args(["trainer.checksum_every_n_steps=4", "trainer.max_tokens_per_micro_batch=100"])
        .args(settings);
    run(&mut command).expect(0);
    assert_eq!(checkpoint_steps(run_dir), [21, 24]);
}

fn on(world_size: usize, job: &str, run_dir: &Path, arguments: &[&str]) -> Finished {
    let mut command: Command = ranks(world_size);
    run(command.arg(job).arg("--run-dir").arg(run_dir).args(arguments))
}

/// Every file of a folder with its size and time.
fn listing(folder: &Path) -> BTreeSet<(PathBuf, u64, SystemTime)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable folder").path();
        let about = path.metadata().expect("a file");
        if about.is_dir() {
            found.extend(listing(&path));
        }
        found.insert((path, about.len(), about.modified().expect("a time")));
    }
    found
}

#[test]
fn a_step_that_is_trained_again_has_the_same_bits_and_what_differs_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path();
    train(run_dir, &["model.dropout=0.1"]);
    let before = listing(run_dir);
    let same = on(2, "verify-resume", run_dir, &["--steps", "3"]).expect(0);
    let verdict = "same bits: steps 22 to 24, trained again from checkpoint 21";
    assert!(
        same.stdout.contains(verdict) && same.stdout.contains("gradient norms, parameters)"),
        "{}",
        same.stdout
    );
    let few = on(2, "verify-resume", run_dir, &["--step", "21", "--steps", "5"]).expect(0);
    assert!(few.stdout.contains(verdict) && few.stdout.contains("2 steps fewer"), "{}", few.stdout);
    // Other ranks draw other dropout.
    let other = on(1, "verify-resume", run_dir, &[]).expect(0);
    assert!(other.stdout.contains("same samples: steps 22 to 24"), "{}", other.stdout);
    assert!(other.stdout.contains("recorded on 2 ranks, now on 1"), "{}", other.stdout);
    // The first step's loss is from before the first update with the other rate.
    let rate = on(2, "verify-resume", run_dir, &["optimizer.lr=2e-3"]).expect(7);
    assert!(rate.stdout.contains("not the same: step 23: the loss was"), "{}", rate.stdout);
    on(1, "verify-resume", run_dir, &["--step", "24"]).expect(2).sentence();
    on(1, "verify-resume", run_dir, &["--step", "5"]).expect(4).sentence();
    on(1, "verify-resume", run_dir, &["seed=2"]).expect(4).sentence();
    assert!(before == listing(run_dir), "a check changes nothing");

    let path = run_dir.join("digest.jsonl");
    let text = fs::read_to_string(&path).expect("a digest");
    let samples = digest_entries(run_dir, "samples")[22].as_str().expect("digits").to_owned();
    fs::write(&path, text.replace(&samples, "0000000000000001")).expect("a writable file");
    let samples = on(1, "verify-resume", run_dir, &[]).expect(7);
    assert!(
        samples.stdout.contains("step 23: the hash of the samples was 0000000000000001"),
        "{}",
        samples.stdout
    );
}

#[test]
fn without_dropout_other_ranks_have_the_same_losses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &["model.dropout=0.0"]);
    for world_size in [1, 3] {
        let same = on(world_size, "verify-resume", folder.path(), &[]).expect(0);
        assert!(same.stdout.contains("same samples, and losses equal to rounding"), "{}", same.stdout);
    }
    let settings = ["optimizer.lr=2e-3", "--steps", "2"];
    on(1, "verify-resume", folder.path(), &settings).expect(7);
}

fn rows(world_size: usize, run_dir: &Path, arguments: &[&str]) -> Vec<Value> {
    let finished = on(world_size, "replay", run_dir, &[arguments, &["--json"]].concat()).expect(0);
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_batch_of_a_step_is_shown_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run_dir = folder.path();
    train(run_dir, &[]);
    let shown = on(1, "replay", run_dir, &["--step", "7"]).expect(0).stdout;
    assert!(shown.contains("these are the samples, texts and drops that the run recorded"), "{shown}");
    for part in ["step 7, rank 0, micro-batch 0 of", "step 7, rank 1, micro-batch 1 of 2", "[CLS]", "[+1:"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let all = rows(1, run_dir, &["--step", "7"]);
    let positions: BTreeSet<u64> = all.iter().filter_map(|row| row["position"].as_u64()).collect();
    assert_eq!(positions, (48..56).collect(), "the global batch");
    let is_shown = |row: &Value| {
        shown.contains(&format!("sample {}, epoch 1, position {}:", row["sample"], row["position"]))
    };
    assert!(all.iter().all(is_shown), "{shown}");
    let part = rows(1, run_dir, &["--step", "7", "--rank", "1", "--micro-batch", "0"]);
    let expected = all.iter().filter(|row| row["rank"] == 1 && row["micro_batch"] == 0);
    assert_eq!(part, expected.cloned().collect::<Vec<_>>());
    assert!(!part.is_empty() && part.len() < all.len());

    let beyond = on(1, "replay", run_dir, &["--step", "30"]).expect(0);
    assert!(beyond.stdout.contains("the run recorded no such step"), "{}", beyond.stdout);
    let other = on(1, "replay", run_dir, &["--step", "7", "seed=2"]).expect(7);
    assert!(other.stdout.contains("these are not the samples"), "{}", other.stdout);
    on(1, "replay", run_dir, &["--step", "7", "--rank", "2"]).expect(2).sentence();
    on(1, "replay", run_dir, &["--step", "7", "--micro-batch", "9"]).expect(2).sentence();
    on(1, "replay", run_dir, &["--step", "30", "data.epochs=2"]).expect(2).sentence();
}
