//! How long a save stops training, and how long it takes to be durable, beside the disk's own speed.
//!
//! `cargo run --release -p checkpoints --example save_stall -- [--parameters N] [--saves N] [--dir DIR]` prints a line of
//! JSON per save. It needs 32 bytes of memory and 48 bytes of disk per parameter, and removes its files.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use checkpoints::{
    BackgroundCommit, BackgroundWriter, CheckpointConfig, Commit, Layout, RunState, Section, Store,
    TensorEntry, write_shard,
};
use serde_json::json;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SECTIONS: [&str; 4] = ["master", "exp_avg", "exp_avg_sq", "ema"];

struct Arguments {
    parameters: usize,
    saves: u64,
    dir: PathBuf,
}

impl Arguments {
    fn parse() -> Outcome<Self> {
        let mut parsed = Self { parameters: 134_000_000, saves: 3, dir: std::env::temp_dir() };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
            match name.as_str() {
                "--parameters" => parsed.parameters = value.parse()?,
                "--saves" => parsed.saves = value.parse()?,
                "--dir" => parsed.dir = value.into(),
                _ => return Err(format!("no argument is called {name}").into()),
            }
        }
        Ok(parsed)
    }
}

fn main() -> Outcome {
    let arguments = Arguments::parse()?;
    let dir = arguments.dir.join(format!("save-stall-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let measured = measure(&arguments, &dir);
    fs::remove_dir_all(&dir)?;
    measured
}

fn measure(arguments: &Arguments, dir: &Path) -> Outcome {
    let len = arguments.parameters;
    let arenas = [1, 2, 3, 4].map(|salt| (0..len).map(|i| (i * salt) as f32).collect::<Vec<f32>>());
    let sections: Vec<_> =
        SECTIONS.iter().zip(&arenas).map(|(name, data)| Section { name, range: 0..len, data }).collect();
    let bytes = (len * SECTIONS.len() * size_of::<f32>()) as f64;
    let gigabytes_per_s = |took: Duration| bytes / 1e9 / took.as_secs_f64();
    let mut writer = BackgroundWriter::new(0, len * SECTIONS.len())?;
    let mut store = Store::open(dir)?;

    for save in 0..arguments.saves {
        let raw = write_plainly(&dir.join("plain"), &sections)?;
        let synchronous = save_at_once(&mut store, 2 * save + 1, &sections)?;
        let begun = Instant::now();
        let staging = store.begin(2 * save + 2)?;
        let stage = writer.stage(staging.dir(), &sections)?;
        let stall = begun.elapsed();
        let written = writer.wait().ok_or("nothing was staged")??;
        let commit = commit(staging, vec![written.record], 2 * save + 2, 0..len);
        let committed;
        (store, committed) = BackgroundCommit::start(store, commit)?.wait();
        let committed = committed?;
        let checked = Instant::now();
        store.get(2 * save + 2)?.verify()?;
        let verify = checked.elapsed();
        let line = json!({
            "save": save,
            "parameters": len,
            "megabytes": bytes / 1e6,
            "stall_ms": milliseconds(stall),
            "stage_ms": milliseconds(stage),
            "stage_gb_per_s": gigabytes_per_s(stage),
            "write_ms": milliseconds(written.timings.write),
            "commit_and_prune_ms": milliseconds(committed.took),
            "durable_ms": milliseconds(stall + written.timings.write + committed.took),
            "synchronous_save_ms": milliseconds(synchronous),
            "verify_gb_per_s": gigabytes_per_s(verify),
            "plain_write_ms": milliseconds(raw),
            "plain_write_gb_per_s": gigabytes_per_s(raw),
        });
        println!("{line}");
    }
    Ok(())
}

/// A save during which training would stand still.
fn save_at_once(store: &mut Store, step: u64, sections: &[Section<'_>]) -> Outcome<Duration> {
    let begun = Instant::now();
    let staging = store.begin(step)?;
    let record = write_shard(staging.dir(), 0, sections)?;
    commit(staging, vec![record], step, sections[0].range.clone()).run(store)?;
    Ok(begun.elapsed())
}

fn commit(
    staging: checkpoints::Staging,
    records: Vec<checkpoints::ShardRecord>,
    step: u64,
    arena: Range<usize>,
) -> Commit {
    let len = arena.len() as u64;
    let tensors = vec![TensorEntry { name: "all".into(), shape: vec![len], offset: 0, len }];
    let state = RunState { step, world_size: 1, ..Default::default() };
    Commit { staging, layout: Layout { len, tensors }, records, state, config: CheckpointConfig::default() }
}

/// As many bytes in a plain file, synced: what the disk can do.
fn write_plainly(path: &Path, sections: &[Section<'_>]) -> Outcome<Duration> {
    let block = vec![0xa5u8; 4 << 20];
    let begun = Instant::now();
    let mut file = File::create(path)?;
    let mut left: usize = sections.iter().map(|section| size_of_val(section.data)).sum();
    while left > 0 {
        let now = left.min(block.len());
        file.write_all(&block[..now])?;
        left -= now;
    }
    file.sync_data()?;
    let took = begun.elapsed();
    fs::remove_file(path)?;
    Ok(took)
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
