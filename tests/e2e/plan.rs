//! Predictions for hardware that is not there: the page of the documents, JSON, own descriptions and data.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{Finished, run, worker};

fn plan(arguments: &[&str]) -> Finished {
    run(worker().arg("plan").args(arguments))
}

fn json(arguments: &[&str]) -> Value {
    let finished = plan(&[arguments, &["--json"]].concat()).expect(0);
    serde_json::from_str(&finished.stdout).expect("valid JSON")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the repository")
}

#[test]
fn the_page_shows_what_the_program_says() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a readable page");
    let command = "ilm-worker plan --experiment owt_ilm trainer.precision=bf16";
    assert!(page.contains(command), "the page names the command that writes it");
    let said = plan(&["--experiment", "owt_ilm", "trainer.precision=bf16"]).expect(0).stdout;
    assert!(page.contains(said.trim()), "put this on the page \"Scale on paper\":\n{said}");
}

#[test]
fn figures_come_as_json_and_follow_settings_and_hardware() {
    let one = json(&["--experiment", "owt_ilm", "--gpus", "8"]);
    let predictions = one["predictions"].as_array().expect("a list");
    assert_eq!((predictions.len(), predictions[0]["gpus"].as_u64()), (1, Some(8)));
    assert_eq!(one["rows"]["longest"], 1024.0);
    let recomputed = json(&["--experiment", "owt_ilm", "--gpus", "8", "trainer.recompute=blocks"]);
    let activations = |plan: &Value| plan["predictions"][0]["activations"].as_f64().expect("a number");
    assert!(activations(&recomputed) < 0.5 * activations(&one));

    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = fs::read_to_string(root().join("configs/hardware/h100.toml")).expect("a readable file");
    let file = folder.path().join("own.toml");
    let path = file.display().to_string();
    fs::write(&file, text.replace("bytes = 80e9", "bytes = 1.2e9")).expect("a writable folder");
    let small = json(&["--experiment", "owt_ilm", "--gpus", "8", "--hardware", &path]);
    assert!(
        small["predictions"][0]["limits"][0]["reason"].as_str().expect("a reason").starts_with("memory: ")
    );
    fs::write(&file, text.replace("launch_s = 4e-6", "launch_s = -1")).expect("a writable folder");
    let sentence = plan(&["--experiment", "owt_ilm", "--hardware", &path]).expect(2).sentence();
    assert!(sentence.contains("own.toml describes no hardware: compute.launch_s = -1"), "{sentence}");
    let sentence = plan(&["--experiment", "owt_ilm", "--hardware", "h10"]).expect(2).sentence();
    assert!(sentence.contains("there is no hardware 'h10' (did you mean 'h100'?)"), "{sentence}");
}

#[test]
fn lengths_are_those_of_the_data_where_there_are_any() {
    let star = json(&["--experiment", "star_easy_ilm"]);
    assert_eq!(star["rows_from"], "of 4096 rows of the data");
    // CLS, 24 tokens of twelve edges, source and goal; BOS and a path of four edges: half of its 8 tokens stay.
    assert_eq!((star["rows"]["source"].as_f64(), star["rows"]["visible"].as_f64()), (Some(36.0), Some(32.0)));
}

#[test]
fn more_gpus_than_there_are_is_a_mistake() {
    let finished = plan(&["--experiment", "owt_ilm", "--gpus", "18446744073709551615"]).expect(2);
    assert!(finished.stderr.contains("is not in 1..=1000000"), "{}", finished.stderr);
    plan(&["--experiment", "owt_ilm", "--gpus", "1000000"]).expect(0);
}
