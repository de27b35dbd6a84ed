//! Generation from a checkpoint, and weights in and out in the reference's form.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{
    Signal, checkpoint_bits, checkpoint_path, kill, ranks, run, start, tiny_star, wait, wait_until, worker,
};

fn train(run_dir: &Path, extra: &[&str]) {
    let mut command = ranks(1);
    command.args(tiny_star(run_dir)).args(["trainer.max_steps=3"]).args(extra);
    run(&mut command).expect(0);
}

/// The lines that a generation writes.
fn generate(world_size: usize, run_dir: &Path, extra: &[&str]) -> Vec<Value> {
    let output = run_dir.join("generated.jsonl");
    let mut command = ranks(world_size);
    command.arg("generate").arg("--run-dir").arg(run_dir).arg("--output").arg(&output).args(extra);
    let finished = run(&mut command).expect(0);
    assert!(finished.stdout.contains("insertions/s"), "{}", finished.stdout);
    let lines = fs::read_to_string(&output).expect("the texts are written");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_same_seed_gives_the_same_texts_on_any_ranks_and_in_any_batches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &[]);
    let sampled = ["--num", "13", "predictor.sampling_method=sample", "predictor.second_sampling_method="];
    let one = generate(1, folder.path(), &sampled);
    assert_eq!(one.len(), 13);
    assert!(one.iter().enumerate().all(|(id, record)| record["id"] == id));
    let texts = |records: &[Value]| records.iter().map(|record| record["ids"].clone()).collect::<Vec<_>>();
    let distinct: std::collections::BTreeSet<String> = texts(&one).iter().map(ToString::to_string).collect();
    assert!(distinct.len() > 5, "hardly anything is random: {distinct:?}");

    assert_eq!(generate(2, folder.path(), &sampled), one);
    let other_batches = [&sampled[..], &["per_device_batch_size=5"]].concat();
    assert_eq!(generate(1, folder.path(), &other_batches), one);
    let other_seed = [&sampled[..], &["seed=2"]].concat();
    assert_ne!(texts(&generate(1, folder.path(), &other_seed)), texts(&one));
}

/// Far more texts are asked for than there is time for; then as many as the stopped one has surely begun.
#[test]
fn a_signal_stops_between_steps_and_finished_texts_are_not_made_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &[]);
    let settings = ["per_device_batch_size=3", "predictor.stopping_threshold=1.0"];
    let few = [&["--num", "20"][..], &settings].concat();
    let expected = generate(1, folder.path(), &few);
    for (world_size, signal) in [(1, Signal::SIGTERM), (2, Signal::SIGUSR1)] {
        let mut command = ranks(world_size);
        command.arg("generate").arg("--run-dir").arg(folder.path());
        command.arg("--output").arg(folder.path().join("generated.jsonl"));
        command.args(["--num", "300000"]).args(settings);
        let child = start(&mut command);
        let part = folder.path().join("generated.jsonl.part-0");
        wait_until("finished texts", || {
            fs::read_to_string(&part).is_ok_and(|text| text.lines().count() >= 3)
        });
        kill(signal, child.id());
        let stopped = wait(child).expect(75);
        assert!(stopped.stdout.contains("of 300000 texts; start again"), "{}", stopped.stdout);

        let mut command = ranks(1);
        command.arg("generate").arg("--run-dir").arg(folder.path());
        let again =
            run(command.arg("--output").arg(folder.path().join("generated.jsonl")).args(&few)).expect(0);
        assert!(again.stdout.contains("texts are there from before"), "{}", again.stdout);
        let text = fs::read_to_string(folder.path().join("generated.jsonl")).expect("the texts are written");
        let records: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(records, expected);
        assert!(!part.exists());
    }
}

#[test]
fn prompts_and_gaps_come_from_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &[]);
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a writable folder");
        path.display().to_string()
    };
    let prompts = file("prompts.txt", "1 2 3\n4\n");
    let long = ["predictor.stopping_threshold=1.0", "predictor.max_steps=4", "predictor.return_history=true"];
    let records = generate(1, folder.path(), &[&["--prompts", &prompts][..], &long].concat());
    assert_eq!(records.len(), 2);
    for record in &records {
        assert_eq!(record["inserted"], 4);
        assert_eq!(record["history"].as_array().expect("a history").len(), 5);
        assert_eq!(record["history"][4][0], record["text"]);
    }

    let texts = file("texts.txt", "1 2 <blank> 3 4 <blank>\n<blank> 9\n");
    let records = generate(2, folder.path(), &[&["--infill", &texts][..], &long].concat());
    let fillings = |record: &Value| -> Vec<String> {
        serde_json::from_value(record["fillings"].clone()).expect("a list of texts")
    };
    let join =
        |parts: &[&str]| parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ");
    let first = fillings(&records[0]);
    assert_eq!(first.len(), 2);
    assert_eq!(records[0]["text"], join(&["1 2", &first[0], "3 4", &first[1]]));
    let second = fillings(&records[1]);
    assert_eq!(records[1]["text"], join(&[&second[0], "9"]));

    let bad = file("bad.txt", "1 2\n3 x\n");
    let mut command = worker();
    command.arg("generate").arg("--run-dir").arg(folder.path()).args(["--prompts", &bad]);
    let sentence = run(&mut command).expect(3).sentence();
    assert!(sentence.contains("line 2") && sentence.contains("'x'"), "{sentence}");

    let long = file("long.txt", "1 2\n1 2 3 4 5 6\n");
    let mut command = worker();
    command.arg("generate").arg("--run-dir").arg(folder.path()).args(["--prompts", &long]);
    let sentence = run(command.arg("predictor.max_length=8")).expect(3).sentence();
    assert!(sentence.contains("line 2") && sentence.contains("has 8 tokens"), "{sentence}");
}

#[test]
fn other_requests_and_settings_have_files_of_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &[]);
    let prompts = ["1 2", "3 4"].map(|line| {
        let path = folder.path().join(format!("{line}.txt"));
        fs::write(&path, line).expect("a writable folder");
        path.display().to_string()
    });
    let names_after = |extra: &[&str]| -> Vec<String> {
        let mut command = worker();
        command.arg("generate").arg("--run-dir").arg(folder.path()).args(extra);
        run(&mut command).expect(0);
        let entries = fs::read_dir(folder.path().join("generations")).expect("a folder of texts");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let first = names_after(&["--num", "2"]);
    assert!(first.len() == 1 && first[0].starts_with("step-000000003-unconditional-"), "{first:?}");
    // neither parts nor a lock stay, and what changes no text changes no name
    assert_eq!(names_after(&["--num", "2", "per_device_batch_size=1"]), first);
    let others = [
        &["--num", "3"][..],
        &["--num", "2", "seed=2"],
        &["--num", "2", "--raw-weights"],
        &["--prompts", &prompts[0]],
        &["--prompts", &prompts[1]],
    ];
    for (files, extra) in (2..).zip(others) {
        assert_eq!(names_after(extra).len(), files, "{extra:?}");
    }
}

#[test]
fn what_cannot_be_generated_or_written_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    train(folder.path(), &[]);
    let refused = |output: &Path, extra: &[&str], code: i32| {
        let mut command = worker();
        command.arg("generate").arg("--run-dir").arg(folder.path()).args(["--num", "2"]).args(extra);
        run(command.arg("--output").arg(output)).expect(code).sentence()
    };
    let texts = folder.path().join("texts.jsonl");
    let sentence = refused(&texts, &["per_device_batch_size=0"], 2);
    assert!(sentence.contains("per_device_batch_size = 0"), "{sentence}");

    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a file system with pipes");
    for output in [pipe.as_path(), folder.path()] {
        let sentence = refused(output, &[], 2);
        assert!(sentence.contains("--output") && sentence.contains("name a file"), "{sentence}");
        assert!(!fs::metadata(output).expect("it is still there").is_file());
    }

    let lock = fs::File::create(folder.path().join("texts.jsonl.part-lock")).expect("a writable folder");
    lock.lock().expect("a file system with locks");
    let sentence = refused(&texts, &[], 4);
    assert!(sentence.contains("texts.jsonl: another process is writing it"), "{sentence}");
    assert!(!texts.exists() && !folder.path().join("texts.jsonl.part-0").exists());
}

#[test]
fn exported_weights_come_back_bit_for_bit() {
    for (model, extra) in [
        ("rotary_tiny", &[][..]),
        ("gpt2_tiny", &[]),
        ("rotary_tiny", &["model.class=rotary_length", "loss.length_loss=ce"]),
        ("gpt2_tiny", &["model.class=gpt2_ilm", "loss.length_loss=none"]),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (run_dir, weights) = (folder.path().join("run"), folder.path().join("weights"));
        let model = format!("model={model}");
        let mut command = ranks(1);
        let settings: Vec<String> =
            tiny_star(&run_dir).into_iter().filter(|setting| !setting.starts_with("model=")).collect();
        command.args(settings).args([&model, "trainer.max_steps=2"]).args(extra);
        run(&mut command).expect(0);

        let mut export = worker();
        export.arg("export").arg("--checkpoint").arg(checkpoint_path(&run_dir, 2));
        export.arg("--ema").arg("--to").arg(&weights);
        run(&mut export).expect(0);
        let config = fs::read_to_string(weights.join("config.json")).expect("config.json is written");
        assert!(config.contains("\"num_embeddings\""), "{config}");

        let imported = folder.path().join("imported");
        let mut import = worker();
        import.args(["import", "--experiment", "star_easy_ilm", "trainer.threads=1"]);
        import.args(extra.iter().filter(|setting| setting.starts_with("loss.")));
        import.arg("--from").arg(&weights).arg("--run-dir").arg(&imported);
        run(&mut import).expect(0);
        let (before, after) = (checkpoint_bits(&run_dir, 2), checkpoint_bits(&imported, 0));
        assert_eq!(before["ema"], after["master"], "{model} {extra:?}");
        assert_eq!(before["ema"], after["ema"]);

        // the imported run can be used: it generates and trains on
        assert_eq!(generate(1, &imported, &["--num", "2"]).len(), 2);
        let mut resume = ranks(1);
        resume.args(["--experiment", "star_easy_ilm", &model, "trainer.threads=1"]).args(extra);
        resume.args(["per_device_batch_size=4", "global_batch_size=8", "trainer.max_steps=1"]);
        resume.args(["model.max_length=42", "--run-dir"]).arg(&imported);
        let finished = run(&mut resume).expect(0);
        assert!(finished.stdout.contains("resuming from"), "{}", finished.stdout);
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (run_dir, weights) = (folder.path().join("run"), folder.path().join("weights"));
    train(&run_dir, &["trainer.ema_decay="]);
    let mut export = worker();
    export.arg("export").arg("--run-dir").arg(&run_dir).arg("--to").arg(&weights);
    run(export.arg("--ema")).expect(2).sentence();
    let mut export = worker();
    run(export.arg("export").arg("--run-dir").arg(&run_dir).arg("--to").arg(&weights)).expect(0);

    let import = |from: &Path, to: &str, extra: &[&str]| {
        let mut command = worker();
        command.args(["import", "--experiment", "star_hard_ilm", "--from"]).arg(from).args(extra);
        run(command.arg("--run-dir").arg(folder.path().join(to)))
    };
    // star_hard has another vocabulary
    let sentence = import(&weights, "a", &[]).expect(2).sentence();
    assert!(sentence.contains("27 tokens") && sentence.contains("63"), "{sentence}");
    let file = weights.join("model.safetensors");
    let bytes = fs::read(&file).expect("readable weights");
    fs::write(&file, &bytes[..bytes.len() - 5]).expect("writable weights");
    let sentence = import(&weights, "a", &[]).expect(4).sentence();
    assert!(sentence.contains("model.safetensors"), "{sentence}");
    import(&folder.path().join("nowhere"), "a", &[]).expect(4).sentence();
    // a run directory that is taken
    fs::write(&file, &bytes).expect("writable weights");
    let mut command = worker();
    command.args(["import", "--experiment", "star_easy_ilm", "--from"]).arg(&weights);
    let sentence = run(command.arg("--run-dir").arg(&run_dir)).expect(2).sentence();
    assert!(sentence.contains("holds checkpoints already"), "{sentence}");
}
