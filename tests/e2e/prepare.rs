//! Token shards and trained tokenizers from the command line: the same bytes however often the job was killed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use test_support::data_dir;

use crate::program::{Signal, kill, mpirun, run, start, wait, wait_until, worker};

fn path(relative: &str) -> String {
    data_dir().join(relative).display().to_string()
}

fn prepare(output: &Path, threads: usize) -> Command {
    let mut command = worker();
    command.args(["prepare", "--experiment", "lm1b_ilm", "--threads", &threads.to_string()]);
    command.arg(format!("data.train={}", path("lm1b-mini/train-*.parquet")));
    command.arg(format!("data.test={}", path("lm1b-mini/test-*.parquet")));
    command.arg(format!("data.tokenizer={}", path("tokenizers/bert-base-uncased/tokenizer.json")));
    command.arg("--output").arg(output);
    command
}

/// Name and content of the files of a folder, but for its lock.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| !path.ends_with(".lock"))
        .map(|path| {
            let name = path.file_name().and_then(OsStr::to_str).expect("a name").to_owned();
            (name, fs::read(&path).expect("a readable file"))
        })
        .collect()
}

/// Whether a shard in a folder is being written.
fn is_writing(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.path().extension() == Some(OsStr::new("partial"))))
    })
}

#[test]
fn neither_threads_nor_a_kill_change_the_shards() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [one, two, killed] = ["one", "two", "killed"].map(|name| folder.path().join(name));
    let finished = run(&mut prepare(&one, 1)).expect(0);
    assert!(finished.stdout.contains("train: 2 files") && finished.stdout.contains("test: "));
    run(&mut prepare(&two, 2)).expect(0);
    assert!(content(&one) == content(&two), "threads change the bytes");

    let child = start(&mut prepare(&killed, 1));
    wait_until("a shard that is being written", || is_writing(&killed));
    kill(Signal::SIGKILL, child.id());
    wait(child);
    run(&mut prepare(&killed, 2)).expect(0);
    assert!(content(&one) == content(&killed), "a kill changes the bytes");

    let refused = run(prepare(&one, 1).args(["--rule", "split"])).expect(2);
    assert!(refused.sentence().contains("rule = keep"), "{}", refused.stderr);
}

#[test]
fn a_validation_split_is_held_out_alike_after_a_kill() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let hold_out = ["--hold-out", "500"];
    let finished = run(prepare(&whole, 2).args(hold_out)).expect(0);
    for part in ["train: 2 files", "validation: 2 files, 500 rows", "test: 1 files"] {
        assert!(finished.stdout.contains(part), "'{part}' is not in: {}", finished.stdout);
    }

    let child = start(prepare(&killed, 1).args(hold_out));
    wait_until("a shard that is being written", || is_writing(&killed));
    kill(Signal::SIGKILL, child.id());
    wait(child);
    // The validation split comes with the train split whose rows it takes.
    run(prepare(&killed, 1).args(hold_out).args(["--split", "train"])).expect(0);
    run(prepare(&killed, 1).args(hold_out)).expect(0);
    assert!(content(&whole) == content(&killed), "a kill changes the bytes");

    let refused = run(prepare(&whole, 1).args(hold_out).arg("seed=2")).expect(2);
    assert!(refused.sentence().contains("and now it is 500 rows by seed 2"), "{}", refused.stderr);
    let refused = run(&mut prepare(&whole, 1)).expect(2);
    assert!(refused.sentence().contains("and now it is none"), "{}", refused.stderr);
}

#[test]
fn what_cannot_be_held_out_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("tokens");
    let test = path("lm1b-mini/test-*.parquet");
    let validation = format!("data.validation={test}");
    let cases: [(&str, &[&str], &str); 5] = [
        ("0", &[], "at least 1"),
        ("1000000000", &[], "no row to train on"),
        ("5", &["--split=test"], "--split"),
        ("5", &["--split=validation"], "--split"),
        ("5", &[validation.as_str()], "data.validation is set"),
    ];
    for (rows, more, part) in cases {
        let refused = run(prepare(&output, 1).args(["--hold-out", rows]).args(more)).expect(2);
        assert!(refused.sentence().contains(part), "'{part}' is not in: {}", refused.stderr);
    }
    let [mut graphs, mut mixed] = [worker(), worker()];
    graphs.args(["prepare", "--experiment", "star_easy_ilm"]);
    mixed.args(["prepare", "--experiment", "lm1b_ilm"]);
    mixed.arg(format!("data.mixture=[{{name='news', path='{test}', weight=1.0}}]"));
    mixed.arg(format!("data.tokenizer={}", path("tokenizers/bert-base-uncased/tokenizer.json")));
    for (mut command, part) in [(graphs, "for texts"), (mixed, "data.mixture")] {
        let refused = run(command.args(["--hold-out", "5", "--output"]).arg(&output)).expect(2);
        assert!(refused.sentence().contains(part), "'{part}' is not in: {}", refused.stderr);
    }
    assert!(!output.exists());
}

#[test]
fn several_ranks_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("tokens");
    let mut jobs = [mpirun(2), mpirun(2), mpirun(2)];
    jobs[0].args(["prepare", "--experiment", "lm1b_ilm", "--output"]);
    jobs[1].args([
        "train-tokenizer",
        "--experiment",
        "text_ilm",
        "--kind",
        "bpe",
        "--vocab-size",
        "600",
        "--output",
    ]);
    jobs[2].args(["import", "--experiment", "lm1b_ilm", "--from", "weights", "--run-dir"]);
    for job in &mut jobs {
        job.arg(&output).arg(format!("data.train={}", path("lm1b-mini/train-*.parquet")));
        job.arg(format!("data.tokenizer={}", path("tokenizers/bert-base-uncased/tokenizer.json")));
        let sentence = run(job).expect(2).sentence();
        assert!(sentence.contains("2 were started") && sentence.contains("mpirun"), "{sentence}");
        assert!(!output.exists());
    }
}

#[test]
fn a_folder_that_another_job_writes_to_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("tokens");
    fs::create_dir(&output).expect("a folder");
    let held = fs::File::create(output.join(".lock")).expect("a file");
    held.lock().expect("a free lock");
    for split in ["train", "test"] {
        let refused = run(prepare(&output, 1).args(["--split", split])).expect(2);
        assert!(refused.sentence().contains("another job is writing to"), "{}", refused.stderr);
    }
    assert!(content(&output).is_empty());
    drop(held);
    run(prepare(&output, 1).args(["--split", "test"])).expect(0);
}

#[test]
fn a_signal_ends_the_job_and_it_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    run(&mut prepare(&whole, 1)).expect(0);
    let child = start(&mut prepare(&stopped, 1));
    wait_until("the job's folder", || stopped.join("prepare.json").exists());
    kill(Signal::SIGTERM, child.id());
    // The job may have ended before the signal came.
    assert!([0, 75].contains(&wait(child).code));
    run(&mut prepare(&stopped, 1)).expect(0);
    assert!(content(&whole) == content(&stopped), "a signal changes the bytes");
}

#[test]
fn a_trained_tokenizer_trains_a_model_on_prepared_texts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = format!("data.train={}", path("lm1b-mini/train-*.parquet"));
    let mut tokenizer = worker();
    tokenizer.args(["train-tokenizer", "--experiment", "text_ilm", &text, "--kind", "bpe"]);
    run(tokenizer.args(["--vocab-size", "600", "--output", &at("tokenizer.json")])).expect(0);

    let tokenizer = format!("data.tokenizer={}", at("tokenizer.json"));
    let mut prepare = worker();
    prepare.args(["prepare", "--experiment", "text_ilm", &text, &tokenizer, "block_size=64"]);
    run(prepare.args(["--rule", "cut", "--output", &at("tokens")])).expect(0);

    let tokens = format!("data.train={}/train-*.parquet", at("tokens"));
    for train in [&text, &tokens] {
        let run_dir = at(if *train == text { "text" } else { "ids" });
        let mut command = worker();
        command.args(["--experiment", "text_ilm", "model=rotary_tiny", train, &tokenizer, "block_size=64"]);
        command.args(["per_device_batch_size=4", "global_batch_size=8", "trainer.max_steps=3"]);
        run(command.args(["trainer.threads=1", "--run-dir", &run_dir])).expect(0);
    }
}
