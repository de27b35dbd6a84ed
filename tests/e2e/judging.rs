//! Texts judged by language models that the Python library transformers has saved, against what it finds itself.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::program::{Signal, kill, ranks, run, start, wait, wait_until, worker};

fn judge_dir(family: &str) -> PathBuf {
    test_support::judges_dir().join(family)
}

fn expected(family: &str) -> Vec<Value> {
    let text = fs::read_to_string(judge_dir(family).join("expected.json")).expect("expectations");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    expected["texts"].as_array().expect("a list of texts").clone()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file of verdicts");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Writes texts as `generate` does, with ids of a generator and a field of somebody else's.
fn write_texts(path: &Path, texts: &[Value]) {
    let line = |(id, text): (usize, &Value)| {
        json!({"id": id, "text": text["text"], "ids": [1, 5, 6, 6], "nll_other": 1.5}).to_string() + "\n"
    };
    fs::write(path, texts.iter().enumerate().map(line).collect::<String>()).expect("a writable folder");
}

fn near(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} instead of {expected}");
}

/// The negative log likelihoods of a text.
fn costs(text: &Value) -> Vec<f64> {
    let found = text["log_likelihoods"].as_array().expect("a list");
    found.iter().map(|value| -value.as_f64().expect("a number")).collect()
}

#[test]
fn figures_are_those_of_transformers_on_any_ranks_and_in_any_batches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("texts.jsonl");
    for (family, world_size, most_tokens) in [("gpt2", 1, 8192), ("llama", 2, 60), ("llama", 1, 1)] {
        let texts = expected(family);
        write_texts(&file, &texts);
        let mut command = ranks(world_size);
        command.arg("judge").arg("--judge").arg(judge_dir(family)).arg("--texts").arg(&file);
        command.arg(format!("trainer.max_tokens_per_micro_batch={most_tokens}"));
        let finished = run(&mut command).expect(0);
        let said = format!("11 texts, 9 judged by {family}: nll ");
        assert!(
            finished.stdout.contains(&said) && finished.stdout.contains("1 are longer than"),
            "{}",
            finished.stdout
        );

        let found = lines(&folder.path().join(format!("texts-{family}.jsonl")));
        assert_eq!(found.len(), texts.len());
        for (id, (found, text)) in found.iter().zip(&texts).enumerate() {
            assert_eq!(
                (&found["text"], &found["id"], &found["nll_other"]),
                (&text["text"], &json!(id), &json!(1.5))
            );
            assert_eq!(found["length"], 3);
            near(&found["entropy"], 3f64.ln() - 2f64.ln() * 2.0 / 3.0);
            let costs = costs(text);
            if costs.is_empty() {
                assert_eq!(found[format!("nll_{family}")], Value::Null);
                continue;
            }
            let total: f64 = costs.iter().sum();
            let mean = total / costs.len() as f64;
            near(&found[format!("total_nll_{family}")], total);
            near(&found[format!("nll_{family}")], mean);
            near(&found[format!("perplexity_{family}")], mean.exp());
            assert_eq!(found[format!("total_length_{family}")], costs.len());
        }
        let summary = fs::read_to_string(folder.path().join(format!("texts-{family}.summary.json")));
        let summary: Value = serde_json::from_str(&summary.expect("a summary")).expect("JSON");
        let all: Vec<f64> = texts.iter().flat_map(costs).collect();
        near(
            &summary[format!("total_perplexity_{family}")],
            (all.iter().sum::<f64>() / all.len() as f64).exp(),
        );
        let counts = [&summary["texts"], &summary["judged_texts"], &summary["cut_texts"], &summary["length"]];
        assert_eq!(counts.map(|count| count.as_f64()), [11.0, 9.0, 1.0, 3.0].map(Some));
    }
}

#[test]
fn a_file_of_plain_texts_is_judged_line_by_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, output) = (folder.path().join("texts.txt"), folder.path().join("judged.jsonl"));
    let texts = expected("gpt2");
    let texts: Vec<&Value> = texts.iter().filter(|text| !text["text"].to_string().contains("\\n")).collect();
    let written: String =
        texts.iter().map(|text| format!("{}\n", text["text"].as_str().expect("a text"))).collect();
    fs::write(&file, written).expect("a writable folder");
    let mut command = worker();
    command.arg("judge").arg("--judge").arg(judge_dir("gpt2")).arg("--texts").arg(&file);
    run(command.arg("--output").arg(&output)).expect(0);
    let found = lines(&output);
    assert_eq!(found.len(), 10);
    for (found, text) in found.iter().zip(texts) {
        assert_eq!((&found["text"], &found["length"]), (&text["text"], &Value::Null));
        let costs = costs(text);
        if !costs.is_empty() {
            near(&found["total_nll_gpt2"], costs.iter().sum());
        }
    }
}

/// Far more texts are asked for than there is time for; then as many as the stopped one has surely begun.
#[test]
fn a_signal_stops_a_judge_and_its_verdicts_are_not_found_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, output) = (folder.path().join("texts.jsonl"), folder.path().join("judged.jsonl"));
    let some: Vec<Value> = expected("llama").into_iter().cycle().take(40).collect();
    let many: Vec<Value> = some.iter().cloned().cycle().take(200_000).collect();
    let judge = |world_size: usize| {
        let mut command = ranks(world_size);
        command.arg("judge").arg("--judge").arg(judge_dir("llama")).arg("--texts").arg(&file);
        command.arg("--output").arg(&output).arg("trainer.max_tokens_per_micro_batch=128");
        command
    };
    write_texts(&file, &some);
    run(&mut judge(1)).expect(0);
    let whole = lines(&output);

    write_texts(&file, &many);
    let child = start(&mut judge(2));
    let part = folder.path().join("judged.jsonl.part-0");
    wait_until("verdicts", || fs::read_to_string(&part).is_ok_and(|text| text.lines().count() >= 3));
    kill(Signal::SIGUSR1, child.id());
    let stopped = wait(child).expect(75);
    assert!(stopped.stdout.contains("of 200000 texts judged; start again"), "{}", stopped.stdout);

    // the longest texts come first, so one of the first forty is there
    write_texts(&file, &some);
    let again = run(&mut judge(1)).expect(0);
    assert!(again.stdout.contains("texts are there from before"), "{}", again.stdout);
    let found = lines(&output);
    assert_eq!(found.len(), whole.len());
    for (found, whole) in found.iter().zip(&whole) {
        assert_eq!(found["text"], whole["text"]);
        if let Some(nll) = whole["nll_llama"].as_f64() {
            near(&found["nll_llama"], nll);
        }
    }
    assert!(!part.exists());
}

#[test]
fn what_cannot_be_judged_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("texts.jsonl");
    fs::write(&file, "{\"text\": \"fine\"}\n{\"txt\": \"no\"}\n").expect("a writable folder");
    let sentence = |judge: &Path, code: i32, extra: &[&str]| {
        let mut command = worker();
        command.arg("judge").arg("--judge").arg(judge).arg("--texts").arg(&file).args(extra);
        run(&mut command).expect(code).sentence()
    };
    let said = sentence(&judge_dir("gpt2"), 3, &[]);
    assert!(said.contains("line 2 of") && said.contains("missing field `text`"), "{said}");
    let said = sentence(&judge_dir("gpt2"), 2, &["optimizer.lr=0.1"]);
    assert!(said.contains("unknown key 'optimizer.lr' (this job knows trainer.device"), "{said}");
    let said = sentence(folder.path(), 4, &[]);
    assert!(said.contains("config.json") && said.contains("--judge names a folder with"), "{said}");

    fs::write(&file, "{\"text\": \"fine\"}\n").expect("a writable folder");
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::copy(judge_dir("gpt2").join(name), folder.path().join(name)).expect("a copy");
    }
    let config = fs::read_to_string(judge_dir("gpt2").join("config.json")).expect("a configuration");
    for (from, to, said) in [
        (
            "\"n_embd\": 32",
            "\"n_embd\": 64",
            "'transformer.wte.weight' of shape [320, 32] where [320, 64] is needed",
        ),
        ("\"n_layer\": 3", "\"n_layer\": 4", "has no tensor 'h.3.ln_1.weight'"),
        ("\"n_layer\": 3", "\"n_layer\": 2", "has 'transformer.h.2.attn.c_attn.bias' and 11 more parameters"),
        (
            "gelu_new",
            "quick_gelu",
            "cannot judge: the judge's config.json has activation_function = quick_gelu",
        ),
        ("\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": -1e9", "of text 1 is no finite number"),
        (
            "\"model_type\": \"gpt2\"",
            "\"model_type\": \"mamba\"",
            "unknown variant `mamba`, expected `gpt2` or `llama`",
        ),
    ] {
        fs::write(folder.path().join("config.json"), config.replace(from, to)).expect("a writable folder");
        let found = sentence(folder.path(), 4, &[]);
        assert!(found.contains(said), "{found}");
    }
}
