//! Training on real text, from strings and from token ids.

use std::fs;
use std::path::Path;

use test_support::data_dir;

use crate::program::{Finished, figures, mpirun, run, worker};

fn path(relative: &str) -> String {
    data_dir().join(relative).display().to_string()
}

fn train(experiment: &str, run_dir: &Path, settings: &[String]) -> Finished {
    let mut command = mpirun(2);
    command.args(["--experiment", experiment, "model=rotary_tiny", "trainer.threads=1"]).args(settings);
    command.args(["per_device_batch_size=8", "global_batch_size=16", "trainer.max_steps=60"]);
    command.args(["optimizer.lr=3e-3", "lr_scheduler.num_warmup_steps=5", "loss.length_loss_weight=1.0"]);
    command.arg("--run-dir").arg(run_dir);
    run(&mut command)
}

/// Mean token losses of the first and the last ten steps, per dropped text: a step's loss is noisy.
fn ends(run_dir: &Path) -> (f64, f64) {
    let losses = figures(run_dir, "token_ce");
    assert_eq!(losses.len(), 60);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..10]), mean(&losses[50..]))
}

/// Trains, and gives what was said on standard error.
fn assert_learns(experiment: &str, settings: &[String]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let finished = train(experiment, folder.path(), settings).expect(0);
    let (first, last) = ends(folder.path());
    assert!(last < 0.9 * first, "token loss went from {first} to {last} only");
    finished.stderr
}

#[test]
fn lm1b_learns_from_text() {
    let said = assert_learns(
        "lm1b_ilm",
        &[
            format!("data.train={}", path("lm1b-mini/train-*.parquet")),
            format!("data.tokenizer={}", path("tokenizers/bert-base-uncased/tokenizer.json")),
            "block_size=64".into(),
        ],
    );
    assert_eq!(said.matches("has 2 of the 8 files of a set").count(), 1, "one rank speaks for all: {said}");
}

#[test]
fn owt_learns_from_text() {
    assert_learns(
        "owt_ilm",
        &[
            format!("data.train={}", path("owt-gpt2-1024-split-mini/train-*.parquet")),
            format!("data.tokenizer={}", path("tokenizers/gpt2/tokenizer.json")),
            "block_size=64".into(),
        ],
    );
}

#[test]
fn owt_learns_from_token_ids() {
    assert_learns(
        "owt_ilm",
        &[
            format!("data.train={}", path("owt-gpt2-1024-mini/train-*.parquet")),
            format!("data.tokenizer={}", path("tokenizers/gpt2/tokenizer.json")),
            "block_size=64".into(),
        ],
    );
}

/// Writes a copy of a tokenizer in which two words have each other's ids.
fn swap_words(tokenizer: &str, to: &Path) {
    let text = fs::read_to_string(tokenizer).expect("a tokenizer");
    assert!(text.contains("\"the\":1996,\"of\":1997,"));
    let swapped = text.replace("\"the\":1996,\"of\":1997,", "\"of\":1996,\"the\":1997,");
    fs::write(to, swapped).expect("a writable folder");
}

#[test]
fn another_tokenizer_of_as_many_tokens_is_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (run_dir, swapped) = (at("run"), at("swapped.json"));
    let bert = path("tokenizers/bert-base-uncased/tokenizer.json");
    swap_words(&bert, &swapped);
    let other = format!("data.tokenizer={}", swapped.display());
    let train = |run_dir: &Path, settings: &[&str]| {
        let mut command = worker();
        command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1", "block_size=32"]);
        command.args(["per_device_batch_size=4", "global_batch_size=4", "trainer.max_steps=1"]);
        command.arg(format!("data.train={}", path("lm1b-mini/train-00000-of-*.parquet")));
        run(command.args(settings).arg("--run-dir").arg(run_dir))
    };
    let own = format!("data.tokenizer={bert}");
    train(&run_dir, &[&own]).expect(0);

    let test = format!("data.test={}", path("lm1b-mini/test-*.parquet"));
    let weights = at("weights").display().to_string();
    for job in [&["evaluate", &test][..], &["generate", "--num", "1"], &["export", "--to", &weights]] {
        let mut command = worker();
        let sentence = run(command.args(job).arg(&other).arg("--run-dir").arg(&run_dir)).expect(4).sentence();
        let names = [swapped.display().to_string(), bert.clone()];
        let is_named = names.iter().all(|name| sentence.contains(name));
        assert!(sentence.contains("another tokenizer") && is_named, "{sentence}");
    }
    let mut export = worker();
    run(export.args(["export", "--to", &weights, "--run-dir"]).arg(&run_dir)).expect(0);

    // What was imported has seen no data whose fingerprint would tell.
    let imported = at("imported");
    let mut import = worker();
    import.args(["import", "--experiment", "lm1b_ilm", &own, "block_size=32", "--from", &weights]);
    run(import.arg("--run-dir").arg(&imported)).expect(0);
    let max_length = "model.max_length=32";
    let sentence = train(&imported, &[&other, max_length]).expect(4).sentence();
    assert!(sentence.contains("another tokenizer") && sentence.contains(&bert), "{sentence}");
    train(&imported, &[&own, max_length]).expect(0);

    // A new run may want it so.
    let new = at("new");
    let from = run_dir.display().to_string();
    let begun = train(&new, &[&other, "--init-from", &from]).expect(0);
    assert!(begun.stderr.contains("were trained with another tokenizer"), "{}", begun.stderr);
    let begun = train(&at("same"), &[&own, "--init-from", &from]).expect(0);
    assert!(!begun.stderr.contains("another tokenizer"), "{}", begun.stderr);
}
