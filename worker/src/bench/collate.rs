//! Drops and packing by one data thread: what training must not wait for.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use data_pipeline::{BatchPool, Example, PlainMemory, SampleKey};
use serde::Serialize;

use super::case::Case;
use super::report::Common;
use super::{Bench, Samples};
use crate::config::validate;

/// Rows that are collated in a round.
const ROWS: u64 = 16_384;
const QUICK_ROWS: u64 = 64;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    /// Of all rows of a round.
    median_s: f64,
    min_s: f64,
    examples_per_s: f64,
    /// Tokens before dropping, prompts included.
    tokens_per_s: f64,
}

/// Measures steps of the case's global batch.
///
/// # Errors
/// Rows that cannot be read.
pub fn collate(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let experiment = &case.experiment;
    let rows = (if bench.quick { QUICK_ROWS } else { ROWS }).min(case.dataset.len());
    let mut samples: Vec<(SampleKey, Example)> = Vec::new();
    for row in 0..rows {
        let key = SampleKey { position: row, epoch: 0, row };
        samples.extend(case.dataset.example(row)?.map(|example| (key, example)));
    }
    let tokens: usize = samples.iter().map(|(_, example)| example.prompt.len() + example.tokens.len()).sum();
    let collator = case.assembly.collator(experiment)?;
    let limit = validate::micro_batch_limit(experiment, None);
    let pool = BatchPool::new(Arc::new(PlainMemory), 64);
    let mut seconds = Samples::default();
    bench.rounds(|_| {
        let start = Instant::now();
        for step in samples.chunks(experiment.global_batch_size) {
            black_box(collator.collate_step(step, limit, &pool)?);
        }
        seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    let median_s = seconds.median();
    bench.print(&Line {
        common: Common { threads: 1, ..bench.common("collate", case) },
        median_s,
        min_s: seconds.min(),
        examples_per_s: samples.len() as f64 / median_s,
        tokens_per_s: tokens as f64 / median_s,
    });
    Ok(())
}
