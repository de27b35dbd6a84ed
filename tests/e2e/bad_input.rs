//! Damaged or odd input: one sentence, the right exit code, no backtrace, nothing lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use test_support::data_dir;

use crate::program::{
    Finished, checkpoint_bits, checkpoint_steps, figures, last_step, mpirun, program, ranks, run, tiny_star,
    worker,
};

const CONFIG: i32 = 2;
const DATA: i32 = 3;
const CHECKPOINT: i32 = 4;

fn tokenizer() -> String {
    data_dir().join("tokenizers/bert-base-uncased/tokenizer.json").display().to_string()
}

fn train_on(file: &Path, run_dir: &Path, tokenizer: &str) -> Finished {
    let mut command = worker();
    command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1"]);
    command.args([
        "per_device_batch_size=16",
        "global_batch_size=64",
        "trainer.max_steps=7",
        "block_size=32",
    ]);
    command.arg(format!("data.train={}", file.display())).arg(format!("data.tokenizer={tokenizer}"));
    run(command.arg("--run-dir").arg(run_dir))
}

/// Seven steps of 64 see every row of every file at least once.
#[test]
fn every_damaged_file_has_its_sentence() {
    let cases: [(&str, i32, &[&str]); 17] = [
        ("truncated", DATA, &["truncated.parquet"]),
        ("zero_byte", DATA, &["zero_byte.parquet"]),
        ("not_parquet", DATA, &["not_parquet.parquet"]),
        ("wrong_column", DATA, &["wrong_column.parquet", "content"]),
        ("wrong_type", DATA, &["wrong_type.parquet", "text"]),
        ("wrong_type_list", DATA, &["wrong_type_list.parquet", "text"]),
        ("null_texts", DATA, &["null_texts.parquet", "row group", "row"]),
        ("empty_strings", 0, &[]),
        ("invalid_utf8_binary", DATA, &["invalid_utf8_binary.parquet"]),
        ("invalid_utf8_string", DATA, &["invalid_utf8_string.parquet", "row group"]),
        ("huge_document", 0, &[]),
        ("bad_footer_magic", DATA, &["bad_footer_magic.parquet"]),
        ("bad_footer_length", DATA, &["bad_footer_length.parquet"]),
        ("corrupt_footer_metadata", DATA, &["corrupt_footer_metadata.parquet"]),
        ("corrupt_page_data", DATA, &["corrupt_page_data.parquet", "row group 1"]),
        ("corrupt_page_crc", DATA, &["corrupt_page_crc.parquet", "row group 1"]),
        ("no_rows", DATA, &["no_rows.parquet"]),
    ];
    for (name, code, parts) in cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = data_dir().join(format!("bad/{name}.parquet"));
        let finished = train_on(&file, folder.path(), &tokenizer());
        assert_eq!(finished.code, code, "{name}\n{}\n{}", finished.stdout, finished.stderr);
        if code != 0 {
            let sentence = finished.sentence();
            assert!(parts.iter().all(|part| sentence.contains(part)), "{name}: {sentence}");
        }
    }
}

#[test]
fn damage_that_one_rank_meets_ends_all_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = mpirun(2);
    command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1", "block_size=32"]);
    command.args(["per_device_batch_size=4", "global_batch_size=8", "trainer.max_steps=60"]);
    command.arg(format!("data.train={}", data_dir().join("bad/corrupt_page_data.parquet").display()));
    command.arg(format!("data.tokenizer={}", tokenizer())).arg("--run-dir").arg(folder.path());
    let sentence = run(&mut command).expect(DATA).sentence();
    assert!(sentence.contains("corrupt_page_data.parquet") && sentence.contains("row group 1"), "{sentence}");
}

/// Four rows a step, as they lie: the first bad one is row 8, which rank 0 has in the third step. Without the data of that
/// step it is row 15, which rank 1 has in the third step.
#[test]
fn a_bad_row_costs_no_finished_step() {
    let cases: [(usize, &[&str], &str); 3] =
        [(1, &[], "at row 8 "), (2, &[], "at row 8 "), (2, &["data.skip_steps=[\"2..3\"]"], "at row 15 ")];
    for (world_size, settings, place) in cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [stopped, whole] = ["stopped", "whole"].map(|name| folder.path().join(name));
        let train = |run_dir: &Path, on_bad_row: &str| {
            let mut command = ranks(world_size);
            command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1"]);
            command.args(["block_size=32", "per_device_batch_size=4", "global_batch_size=4"]);
            command.args(["data.shuffle=false", "trainer.max_steps=5"]).args(settings);
            command.arg(format!("data.on_bad_row={on_bad_row}"));
            command.arg(format!("data.train={}", data_dir().join("bad/null_texts.parquet").display()));
            command.arg(format!("data.tokenizer={}", tokenizer())).arg("--run-dir").arg(run_dir);
            run(&mut command)
        };
        // The second start has nothing new to save.
        for saves in [true, false] {
            let finished = train(&stopped, "error").expect(DATA);
            let (sentence, said) = (finished.sentence(), &finished.stdout);
            assert!(sentence.contains("null_texts.parquet") && sentence.contains(place), "{sentence}");
            assert_eq!(said.contains("saved a checkpoint of step 2 in "), saves, "{said}");
            assert!(said.contains("the run ends after step 2, which is saved"), "{said}");
            assert_eq!(checkpoint_steps(&stopped), [2]);
        }
        train(&stopped, "skip").expect(0);
        train(&whole, "skip").expect(0);
        assert_eq!(figures(&stopped, "loss"), figures(&whole, "loss"));
        assert_eq!(figures(&stopped, "skipped_rows")[..3], [0.0, 0.0, 1.0]);
        assert!(checkpoint_bits(&stopped, 5) == checkpoint_bits(&whole, 5), "the final states differ");
    }
}

/// The row is one of the validation, which comes after the second step; nothing is saved before the last one.
#[test]
fn a_bad_row_of_the_validation_costs_no_finished_step() {
    for world_size in [1, 2] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [bad, good] = ["bad/null_texts.parquet", "lm1b-mini/train-00000-of-00008.parquet"]
            .map(|name| data_dir().join(name).display().to_string());
        let train = |on_bad_row: &str| {
            let mut command = ranks(world_size);
            command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1"]);
            command.args(["block_size=32", "per_device_batch_size=2", "global_batch_size=4"]);
            command.args(["trainer.max_steps=3", "trainer.val_check_interval=2"]);
            command.args([format!("data.train={good}"), format!("data.validation={bad}")]);
            command
                .args([format!("data.on_bad_row={on_bad_row}"), format!("data.tokenizer={}", tokenizer())]);
            run(command.arg("--run-dir").arg(folder.path()))
        };
        let finished = train("error").expect(DATA);
        let sentence = finished.sentence();
        assert!(sentence.contains("null_texts.parquet") && sentence.contains("at row 8 "), "{sentence}");
        assert!(finished.stdout.contains("the run ends after step 2, which is saved"), "{}", finished.stdout);
        assert_eq!(checkpoint_steps(folder.path()), [2]);
        let mut evaluate = ranks(world_size);
        evaluate.args(["evaluate", "--split", "validation", "--run-dir"]).arg(folder.path());
        let sentence = run(&mut evaluate).expect(DATA).sentence();
        assert!(sentence.contains("null_texts.parquet"), "{sentence}");
        train("skip").expect(0);
        assert_eq!(last_step(folder.path()), 3);
    }
}

#[test]
fn a_missing_or_broken_tokenizer_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good = data_dir().join("lm1b-mini/train-00000-of-00008.parquet");
    let sentence = train_on(&good, folder.path(), "/does/not/exist.json").expect(CONFIG).sentence();
    assert!(sentence.contains("/does/not/exist.json"), "{sentence}");
    let broken = folder.path().join("tokenizer.json");
    fs::write(&broken, "{ not json").expect("a writable folder");
    let finished = train_on(&good, folder.path(), &broken.display().to_string());
    assert!([CONFIG, DATA].contains(&finished.code), "{}", finished.stderr);
    assert!(finished.sentence().contains("tokenizer.json"));
}

fn train_star(run_dir: &Path, settings: &[&str]) -> Finished {
    run(worker()
        .args(tiny_star(run_dir))
        .args(["trainer.max_steps=6", "checkpoint.every_n_steps=2"])
        .args(settings))
}

#[test]
fn a_vocabulary_that_is_not_the_checkpoints_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train_star(folder.path(), &[]).expect(0);
    let sentence = train_star(folder.path(), &["data.star.num_nodes=30"]).expect(CHECKPOINT).sentence();
    assert!(sentence.contains("27") && sentence.contains("37"), "{sentence}");
    let sentence = train_star(folder.path(), &["model.dim_feedforward=48"]).expect(CHECKPOINT).sentence();
    assert!(sentence.contains("does not fit"), "{sentence}");
    let sentence = train_star(folder.path(), &["data.star.train_size=70"]).expect(CHECKPOINT).sentence();
    assert!(sentence.contains("training data"), "{sentence}");
    let sentence = train_star(folder.path(), &["seed=5"]).expect(CHECKPOINT).sentence();
    assert!(sentence.contains("seed"), "{sentence}");
}

/// Runs the worker with a small file system of its own, set up by a shell line, as its run directory.
fn on_small_disk(setup: &str, folder: &Path) -> Finished {
    let mut line =
        format!("set -e; D='{}'; {setup}; exec '{}'", folder.display(), program("ilm-worker").display());
    for argument in tiny_star(folder) {
        line.push_str(&format!(" '{argument}'"));
    }
    line.push_str(" trainer.max_steps=6 checkpoint.every_n_steps=2");
    // A mount namespace of its own: the mount goes away with the process.
    run(Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c", &line]))
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Of the checkpoints alone: what a run writes beside them must not meet the full disk first.
    let setup = "mkdir \"$D\"/checkpoints; mount -t tmpfs -o size=128k none \"$D\"/checkpoints";
    let finished = on_small_disk(setup, folder.path()).expect(CHECKPOINT);
    let sentence = finished.sentence();
    assert!(sentence.contains("checkpoints") && sentence.to_lowercase().contains("space"), "{sentence}");
    assert_eq!(finished.stderr.matches("could not be saved").count(), 2, "{}", finished.stderr);
}

#[test]
fn a_read_only_disk_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sentence =
        on_small_disk("mount -t tmpfs -o ro none \"$D\"", folder.path()).expect(CHECKPOINT).sentence();
    assert!(sentence.to_lowercase().contains("read-only"), "{sentence}");
}

#[test]
fn evaluation_without_a_run_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let finished = run(worker().arg("evaluate").arg("--run-dir").arg(folder.path().join("none")));
    assert!([CONFIG, CHECKPOINT].contains(&finished.code));
    assert!(finished.sentence().contains("none"));
}
