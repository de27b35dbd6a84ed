//! Reads damaged Parquet files for some time: `fuzz_parquet [--seconds 600] [--seed 0] [FILE...]`; the first finding
//! ends it, and its file stays.

#![expect(clippy::unwrap_used, reason = "a tool for developers that fails has failed")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

#[path = "../tests/support/fuzz.rs"]
mod fuzz;
#[path = "../tests/support/memory.rs"]
mod memory;

#[global_allocator]
static ALLOCATOR: memory::Counted = memory::Counted;

fn main() {
    let (mut seconds, mut seed, mut files) = (600, 0, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|value| value.parse().ok());
        match argument.as_str() {
            "--seconds" => seconds = number().unwrap(),
            "--seed" => seed = number().unwrap(),
            file => files.push(PathBuf::from(file)),
        }
    }
    let dir = tempfile::tempdir().unwrap().keep();
    println!("damaged files are written to {}", dir.display());
    let mut fuzzer = fuzz::Fuzzer::new(&dir, seed, &files);
    let (start, mut told, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(seconds) {
        let began = Instant::now();
        if let Err(finding) = fuzzer.step() {
            println!("FOUND {finding}");
            std::process::exit(1);
        }
        slowest = slowest.max(began.elapsed());
        if start.elapsed().as_secs() / 60 > told {
            told += 1;
            println!("{told} min: {:?}, slowest {slowest:?}", fuzzer.tally);
        }
    }
    println!("nothing found: {:?}, slowest {slowest:?}", fuzzer.tally);
}
