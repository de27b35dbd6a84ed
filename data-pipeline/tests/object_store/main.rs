//! Sets in object stores: a real S3 server, a proxy that makes it fail, processes that are killed, and a server that
//! stands in for the Hugging Face hub.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod caching;
mod faults;
mod hub;
mod kept_index;
mod processes;
mod proxy;
mod reading;
mod stand_in;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use data_pipeline::{
    Columns, Dataset, Detokenizer, Error, Example, Location, OnBad, ParquetDataset, ParquetOptions, Reader,
    Sources, StoreConfig, Tokenizer,
};
use test_support::s3::Server;

/// Two shards of five row groups with GPT-2 ids.
const FILES: [&str; 2] = [
    "owt-gpt2-1024-mini/train-00004-of-00008.parquet",
    "owt-gpt2-1024-mini/validation-00001-of-00002.parquet",
];
/// Where they are put in the bucket.
const FOLDER: &str = "sets/owt";

fn local(file: &str) -> String {
    test_support::data_dir().join(file).to_str().unwrap().to_owned()
}

/// A server that holds the files.
fn serve() -> Server {
    let paths = FILES.map(|file| PathBuf::from(local(file)));
    let name = |path: &Path| format!("{FOLDER}/{}", path.file_name().unwrap().to_str().unwrap());
    Server::start(paths.iter().map(|path| (name(path), path.as_path())))
}

fn locals() -> Location {
    FILES.map(local).to_vec().into()
}

/// A store at a port of this machine that is given up soon.
fn at(port: u16) -> StoreConfig {
    StoreConfig {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".into()),
        allow_http: true,
        anonymous: true,
        retries: Some(3),
        timeout_secs: 1,
        ..StoreConfig::default()
    }
}

fn open(sources: &Sources, location: &Location, index: Option<&Path>) -> Result<ParquetDataset, Error> {
    let options = ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        on_bad_row: OnBad::Error,
        on_bad_file: OnBad::Error,
    };
    let reader = Arc::new(Reader::new(sources.clone(), 64 << 20));
    ParquetDataset::open_from(&reader, location, index, &Arc::new(Tokenizer::numbers(60_000)), options)
}

fn rows(dataset: &ParquetDataset) -> Vec<Example> {
    (0..dataset.len()).map(|row| dataset.example(row).unwrap().unwrap()).collect()
}

/// The first row of every row group.
fn first_rows(dataset: &ParquetDataset) -> Vec<u64> {
    let mut start = 0;
    let starts = dataset.groups().iter().map(|rows| {
        start += rows;
        start - rows
    });
    starts.collect()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("two minutes have passed, but not: {what}");
}
