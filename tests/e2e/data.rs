//! Where the rows come from and which of them are used: stores, mixtures, bad rows, the end of the data, changed data.

use std::fs;
use std::path::Path;
use std::process::Command;

use test_support::{
    data_dir,
    s3::{BUCKET, Server},
};

use crate::program::{
    Finished, checkpoint_bits, checkpoint_steps, figures, json_lines, mpirun, ranks, run, tiny_star, worker,
};

const CHECKPOINT: i32 = 4;

/// Token ids of GPT-2, cut to a small block so that a step is quick.
fn owt(command: &mut Command, train: &str, steps: u64, run_dir: &Path) -> Finished {
    let tokenizer = data_dir().join("tokenizers/gpt2/tokenizer.json");
    command.args(["--experiment", "owt_ilm", "model=rotary_tiny", "trainer.threads=1", "block_size=32"]);
    command.args(["per_device_batch_size=4", "global_batch_size=8", "lr_scheduler.num_warmup_steps=5"]);
    command.args(["checkpoint.every_n_steps=4", "data.store.allow_http=true", "data.store.anonymous=true"]);
    command.arg(format!("trainer.max_steps={steps}"));
    command.arg(format!("data.train={train}")).arg(format!("data.tokenizer={}", tokenizer.display()));
    run(command.arg("--run-dir").arg(run_dir))
}

#[test]
fn training_from_a_bucket_equals_training_from_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let shards: Vec<_> = ["00004", "00005"]
        .map(|shard| data_dir().join(format!("owt-gpt2-1024-mini/train-{shard}-of-00008.parquet")))
        .into_iter()
        .filter(|path| path.exists())
        .collect();
    assert!(!shards.is_empty(), "no shards in {}", data_dir().display());
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    let server = Server::start(shards.iter().map(|path| (format!("owt/{}", name(path)), path.as_path())));

    let quoted: Vec<String> = shards.iter().map(|path| format!("\"{}\"", path.display())).collect();
    owt(&mut mpirun(2), &format!("[{}]", quoted.join(", ")), 12, &at("files")).expect(0);
    let from_store = |port: u16| {
        let mut command = mpirun(2);
        command.arg(format!("data.store.endpoint=http://127.0.0.1:{port}"));
        command.arg("data.store.retries=2").arg(format!("data.cache_dir={}", at("cache").display()));
        command
    };
    let bucket = format!("s3://{BUCKET}/owt/train-*.parquet");
    owt(&mut from_store(server.port), &bucket, 12, &at("bucket")).expect(0);
    assert_eq!(figures(&at("bucket"), "loss"), figures(&at("files"), "loss"));
    assert!(checkpoint_bits(&at("bucket"), 12) == checkpoint_bits(&at("files"), 12), "other parameters");

    // With the server gone the run goes on from what the cache and the index hold.
    let port = server.port;
    drop(server);
    owt(&mut from_store(port), &bucket, 13, &at("bucket")).expect(0);
    assert_eq!(figures(&at("bucket"), "loss").len(), 13);
}

#[test]
fn a_mixture_trains_and_the_end_of_the_data_ends_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let graphs = folder.path().join("graphs");
    let prepare = ["data.star.train_size=60", "data.star.validation_size=20", "data.star.test_size=20"];
    let mut command = worker();
    command.args(["prepare", "--experiment", "star_easy_ilm", "--output"]).arg(&graphs).args(prepare);
    run(&mut command).expect(0);

    let source = |name: &str| {
        format!("{{name = \"{name}\", path = \"{}/{name}-*.parquet\", weight = 1.0}}", graphs.display())
    };
    let run_dir = folder.path().join("mixed");
    let mut mixed = ranks(2);
    mixed.args(tiny_star(&run_dir)).arg(format!("data.mixture=[{}, {}]", source("train"), source("test")));
    mixed.args(["data.max_samples=60", "trainer.max_steps=100"]);
    run(&mut mixed).expect(0);
    // 60 samples in batches of 8: the last one has 4.
    assert_eq!(figures(&run_dir, "step").len(), 8);
    assert_eq!(checkpoint_steps(&run_dir).last(), Some(&8));
    // What the run wrote of its settings can be read by other jobs.
    let mut evaluate = worker();
    evaluate.args(["evaluate", "data.star.test_size=8", "--run-dir"]).arg(&run_dir);
    run(&mut evaluate).expect(0);

    let run_dir = folder.path().join("once");
    let mut once = ranks(1);
    once.args(tiny_star(&run_dir)).arg(format!("data.train={}/train-*.parquet", graphs.display()));
    once.args([
        "data.epochs=1",
        "data.skip_steps=[\"1..3\"]",
        "trainer.max_steps=100",
        "data.print_batch=true",
    ]);
    let finished = run(&mut once).expect(0);
    // 60 rows are 7.5 batches; two are left out.
    assert_eq!(figures(&run_dir, "step").len(), 6);
    let validated = json_lines(&run_dir.join("validation.jsonl"));
    assert_eq!(validated.len(), 1, "the last step is validated, which nobody could know before");
    assert_eq!(validated[0]["step"], 6);
    assert!(finished.stdout.contains("[BOS]") && finished.stdout.contains("dropped"), "{}", finished.stdout);
}

#[test]
fn bad_rows_are_skipped_and_counted_if_told_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let train = |world: usize, run_dir: &Path| {
        let mut command = ranks(world);
        let tokenizer = data_dir().join("tokenizers/bert-base-uncased/tokenizer.json");
        command.args(["--experiment", "lm1b_ilm", "model=rotary_tiny", "trainer.threads=1", "block_size=32"]);
        command.args(["per_device_batch_size=8", "global_batch_size=32", "model.dropout=0.0"]);
        command.args(["data.on_bad_row=skip", "data.epochs=1", "lr_scheduler.num_warmup_steps=5"]);
        command.arg(format!("data.train={}", data_dir().join("bad/null_texts.parquet").display()));
        command.arg(format!("data.tokenizer={}", tokenizer.display()));
        run(command.arg("--run-dir").arg(run_dir)).expect(0)
    };
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    train(1, &one);
    train(2, &two);
    for run_dir in [&one, &two] {
        let skipped: f64 = figures(run_dir, "skipped_rows").iter().sum();
        assert_eq!(skipped, 107.0, "193 of 300 texts are present");
    }
    for (a, b) in figures(&one, "loss").iter().zip(figures(&two, "loss")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn changed_data_is_named_on_resume_and_refused_unless_allowed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let graphs = folder.path().join("graphs");
    let mut command = worker();
    command
        .args(["prepare", "--experiment", "star_easy_ilm", "data.star.train_size=60", "--output"])
        .arg(&graphs);
    run(&mut command).expect(0);
    let run_dir = folder.path().join("run");
    let resume = |more: &[&str]| {
        let mut command = ranks(1);
        command
            .args(tiny_star(&run_dir))
            .arg(format!("data.train={}/*-00000-of-*.parquet", graphs.display()));
        run(command.args(more))
    };
    resume(&["trainer.max_steps=3"]).expect(0);
    let order = resume(&["trainer.max_steps=6", "data.window_groups=5"]).expect(CHECKPOINT).sentence();
    assert!(order.contains("data.window_groups = 2, not 5"), "{order}");

    let validation = fs::read_dir(&graphs).expect("readable").map(|entry| entry.expect("an entry").path());
    let gone =
        validation.into_iter().find(|path| path.to_string_lossy().contains("validation-")).expect("a split");
    fs::remove_file(&gone).expect("removable");
    let sentence = resume(&["trainer.max_steps=6"]).expect(CHECKPOINT).sentence();
    let name = gone.file_name().expect("a file").to_string_lossy();
    assert!(sentence.contains("removed") && sentence.contains(&*name), "{sentence}");
    resume(&["trainer.max_steps=6", "data.allow_changed=true"]).expect(0);
    assert_eq!(figures(&run_dir, "loss").len(), 6);
}
