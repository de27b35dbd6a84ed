//! Training on real text, from strings and from token ids.

use std::path::Path;

use test_support::data_dir;

use crate::program::{Finished, figures, mpirun, run};

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

fn assert_learns(experiment: &str, settings: &[String]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(experiment, folder.path(), settings).expect(0);
    let (first, last) = ends(folder.path());
    assert!(last < 0.9 * first, "token loss went from {first} to {last} only");
}

#[test]
fn lm1b_learns_from_text() {
    assert_learns(
        "lm1b_ilm",
        &[
            format!("data.train={}", path("lm1b-mini/train-*.parquet")),
            format!("data.tokenizer={}", path("tokenizers/bert-base-uncased/tokenizer.json")),
            "block_size=64".into(),
        ],
    );
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
