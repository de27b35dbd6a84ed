//! Tokens per second of the stages of the data pipeline, as JSON lines, and whether a long stream's memory stays flat.
//!
//! `cargo bench -p data-pipeline --bench throughput -- [collate|tokenise|parquet].. [--threads 1,2] [--runs 5]
//! [--data DIR] [--minutes N]`; no stage means all of them, `--minutes` means the memory test alone. Rates count source
//! tokens, before any is dropped, of all threads together; `tokens_per_cpu_s` is a core's rate, which other programs on
//! the machine hardly change; `spread` is the largest minus the smallest rate over the median.

mod collate;
mod memory;
mod report;
mod stream;
mod tokenise;

use std::path::{Path, PathBuf};

use report::{Outcome, Runs};

struct Arguments {
    stages: Vec<String>,
    runs: Runs,
    data: PathBuf,
    minutes: Option<f64>,
}

const STAGES: [&str; 3] = ["collate", "tokenise", "parquet"];

fn main() -> Outcome<()> {
    let arguments = arguments(std::env::args().skip(1))?;
    if let Some(minutes) = arguments.minutes {
        return memory::watch(&arguments.data, minutes, &arguments.runs);
    }
    let wanted = |stage| arguments.stages.is_empty() || arguments.stages.iter().any(|name| name == stage);
    if wanted("collate") {
        collate::run(&arguments.runs)?;
    }
    if wanted("tokenise") {
        tokenise::run(&arguments.data, &arguments.runs)?;
    }
    if wanted("parquet") {
        stream::run(&arguments.data, &arguments.runs)?;
    }
    Ok(())
}

fn arguments(mut words: impl Iterator<Item = String>) -> Outcome<Arguments> {
    let data = test_support::data_dir();
    let runs = Runs { threads: vec![1, 2], count: 5 };
    let mut arguments = Arguments { stages: Vec::new(), runs, data, minutes: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--threads" => {
                let numbers = value()?;
                arguments.runs.threads = numbers.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--runs" => arguments.runs.count = value()?.parse()?,
            "--data" => arguments.data = value()?.into(),
            "--minutes" => arguments.minutes = Some(value()?.parse()?),
            stage if STAGES.contains(&stage) => arguments.stages.push(word),
            other => return Err(format!("'{other}' is neither an option nor one of {STAGES:?}").into()),
        }
    }
    if arguments.runs.count == 0 || arguments.runs.threads.contains(&0) {
        return Err("--runs and --threads need numbers from 1 on".into());
    }
    Ok(arguments)
}

/// A tokenizer file of the data folder.
fn tokenizer_file(data: &Path, name: &str) -> PathBuf {
    data.join("tokenizers").join(name).join("tokenizer.json")
}
