//! A long stream of batches whose resident memory must stay flat.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    report::{Outcome, Runs, on_threads},
    stream::Stream,
};

const INTERVAL: Duration = Duration::from_secs(5);
/// Growth that counts as flat: the allocator's own ups and downs.
const SLACK: f64 = 1.05;

/// Streams for so many minutes on the most threads asked for, and prints memory every few seconds.
///
/// # Errors
/// When the second half of the time needs more memory than the first.
pub fn watch(data: &Path, minutes: f64, runs: &Runs) -> Outcome<()> {
    let stream = Stream::open(data)?;
    let threads = runs.threads.iter().copied().max().unwrap_or(1);
    let (ended, tokens) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            on_threads(threads, |thread| {
                for step in (thread as u64..).step_by(threads) {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    tokens.fetch_add(stream.step(step)?, Ordering::Relaxed);
                }
                Ok(0)
            })
        });
        let mut outcome = Ok(());
        while outcome.is_ok() && !streaming.is_finished() && start.elapsed().as_secs_f64() < minutes * 60.0 {
            std::thread::sleep(INTERVAL);
            outcome = resident_mib().map(|rss| {
                seen.push(rss);
                let seconds = start.elapsed().as_secs();
                let tokens = tokens.load(Ordering::Relaxed);
                println!(
                    "{}",
                    serde_json::json!({
                        "bench": "memory", "threads": threads, "seconds": seconds, "tokens": tokens, "rss_mib": rss,
                    })
                );
            });
        }
        ended.store(true, Ordering::Relaxed);
        streaming.join().map_err(|_| "a thread panicked")??;
        outcome
    })?;
    let (first, second) = seen.split_at(seen.len() / 2);
    let peak = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    if first.is_empty() || peak(second) > peak(first) * SLACK {
        return Err(format!("memory grows: {} MiB, later {} MiB", peak(first), peak(second)).into());
    }
    Ok(())
}

fn resident_mib() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok((kib / 102.4).round() / 10.0)
}
