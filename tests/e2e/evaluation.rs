//! The evaluation job reads a checkpoint and measures every row of a split.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{json_lines, ranks, run, tiny_star};

fn train(run_dir: &Path) {
    let mut command = ranks(1);
    command.args(tiny_star(run_dir)).args(["trainer.max_steps=10", "data.star.test_size=21"]);
    run(&mut command).expect(0);
}

fn evaluate(world_size: usize, run_dir: &Path, extra: &[&str]) -> Value {
    let mut command = ranks(world_size);
    command.arg("evaluate").arg("--run-dir").arg(run_dir).args(extra);
    let finished = run(&mut command).expect(0);
    assert!(finished.stdout.contains("exact match"), "{}", finished.stdout);
    let kind = if extra.contains(&"--raw-weights") { "-raw" } else { "" };
    let report = fs::read_to_string(run_dir.join(format!("evaluations/step-000000010-test{kind}.json")));
    serde_json::from_str(&report.expect("the report is written")).expect("the report is JSON")
}

#[test]
fn every_row_counts_once_whatever_the_number_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path());
    let one = evaluate(1, folder.path(), &[]);
    // 21 rows in batches of 4: the last one is not full.
    assert_eq!(one["examples"], 21);
    let two = evaluate(2, folder.path(), &[]);
    assert_eq!(two["examples"], 21);
    for name in ["loss", "token_ce", "stop_loss"] {
        let (one, two) = (one[name].as_f64().expect("a number"), two[name].as_f64().expect("a number"));
        assert!((one - two).abs() < 1e-6 * one.abs(), "{name}: {one} {two}");
    }
    assert_eq!(one["exact_match"], two["exact_match"]);
    assert_eq!(one["token_accuracy"], two["token_accuracy"]);
}

#[test]
fn averaged_and_raw_weights_differ() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path());
    let averaged = evaluate(1, folder.path(), &[]);
    let raw = evaluate(1, folder.path(), &["--raw-weights"]);
    assert_ne!(averaged["loss"], raw["loss"]);
    assert_eq!((&averaged["weights"], &raw["weights"]), (&"averaged".into(), &"trained".into()));
}

#[test]
fn weights_without_an_average_are_called_what_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = ranks(1);
    command.args(tiny_star(folder.path())).args(["trainer.max_steps=10", "trainer.ema_decay="]);
    run(&mut command).expect(0);
    let report = evaluate(1, folder.path(), &["data.star.test_size=21"]);
    assert_eq!(report["weights"], "trained");
}

#[test]
fn a_group_chosen_for_an_evaluation_is_the_one_that_is_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path());
    let mut command = ranks(1);
    command.arg("evaluate").arg("--run-dir").arg(folder.path()).arg("data=star_hard");
    let sentence = run(&mut command).expect(4).sentence();
    assert!(sentence.contains("but the tokenizer has 63"), "{sentence}");
}

#[test]
fn validation_during_training_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = ranks(2);
    command.args(tiny_star(folder.path()));
    command.args(["trainer.max_steps=4", "trainer.val_check_interval=2", "data.star.validation_size=10"]);
    run(&mut command).expect(0);
    let lines =
        fs::read_to_string(folder.path().join("validation.jsonl")).expect("validation.jsonl is written");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(4)]);
    assert!(lines.iter().all(|line| line["examples"] == 10 && line["loss"].as_f64() > Some(0.0)));
}

#[test]
fn a_validation_that_a_crash_cut_off_is_made_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.star.validation_size=10"];
    let train = || run(ranks(2).args(tiny_star(folder.path())).args(settings)).expect(0);
    train();
    let path = folder.path().join("validation.jsonl");
    let whole = fs::read_to_string(&path).expect("validation.jsonl is written");
    // as if the run had been killed between the last checkpoint and its validation
    let first = whole.lines().next().expect("a line");
    fs::write(&path, format!("{first}\n")).expect("a writable folder");
    train();
    assert_eq!(fs::read_to_string(&path).expect("it is there"), whole);
    train();
    assert_eq!(fs::read_to_string(&path).expect("it is there"), whole, "and only once");
}

#[test]
fn the_last_step_is_validated_once_whatever_the_interval() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = ["trainer.val_check_interval=2", "data.star.validation_size=10"];
    let path = folder.path().join("validation.jsonl");
    let validated = |last: u64| -> Vec<u64> {
        let mut command = ranks(2);
        command.args(tiny_star(folder.path())).args(settings).arg(format!("trainer.max_steps={last}"));
        run(&mut command).expect(0);
        json_lines(&path).iter().map(|line| line["step"].as_u64().expect("a step")).collect()
    };
    assert_eq!(validated(5), [2, 4, 5]);
    assert_eq!(validated(5), [2, 4, 5], "a finished run is not validated again");
    let whole = fs::read_to_string(&path).expect("it is there");
    // as if the run had been killed between the last checkpoint and its validation
    let cut: String = whole.lines().take(2).flat_map(|line| [line, "\n"]).collect();
    fs::write(&path, cut).expect("a writable folder");
    assert_eq!(validated(5), [2, 4, 5]);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), whole);
    assert_eq!(validated(7), [2, 4, 5, 6, 7], "a longer run goes on from there");
}
