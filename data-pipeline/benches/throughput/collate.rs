//! From token ids to packed batches: draw the drops, sort, and list what every gap lost.

use std::{hint::black_box, sync::Arc};

use data_pipeline::{
    BatchPool, Collator, Example, KeyedDrops, MicroBatchLimit, PlainMemory, Purpose, SampleKey, Tokenizer,
    keyed_rng, uniform_below,
};

use crate::report::{Outcome, Runs};

/// Tokens of a run.
const TOKENS: usize = 4_000_000;
/// Samples of a step and rows of a micro-batch.
const STEP: usize = 128;
const ROWS: usize = 32;

/// Lengths as in a real set: lognormal, clipped.
struct Lengths {
    median: f64,
    sigma: f64,
    least: f64,
    most: f64,
}

pub fn run(runs: &Runs) -> Outcome<()> {
    let cases = [
        ("lm1b", Lengths { median: 26.0, sigma: 0.55, least: 3.0, most: 126.0 }),
        ("owt", Lengths { median: 520.0, sigma: 0.5, least: 64.0, most: 1022.0 }),
    ];
    for (case, lengths) in cases {
        let samples = samples(&lengths);
        let collator =
            Collator::language(1024, Tokenizer::numbers(20).special(), Arc::new(KeyedDrops::new(1)))?;
        let pool = BatchPool::new(Arc::new(PlainMemory), 64);
        let limit = MicroBatchLimit { rows: ROWS, visible_tokens: None };
        runs.measure("collate", case, |_, thread, threads| {
            let mut tokens = 0;
            for step in samples.chunks(STEP).skip(thread).step_by(threads) {
                tokens += step.iter().map(|(_, example)| example.tokens.len() as u64).sum::<u64>();
                black_box(collator.collate_step(step, limit, &pool)?);
            }
            Ok(tokens)
        })?;
    }
    Ok(())
}

/// Random ids in rows of random lengths.
fn samples(lengths: &Lengths) -> Vec<(SampleKey, Example)> {
    let mut rng = keyed_rng(1, Purpose::Star, 0, 0);
    let mut samples = Vec::new();
    let mut tokens = 0;
    while tokens < TOKENS {
        // A normal number by Box and Muller's method.
        let mut unit = || (uniform_below(&mut rng, 1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        let normal = (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
        let length =
            (lengths.median * (lengths.sigma * normal).exp()).clamp(lengths.least, lengths.most) as usize;
        let ids = (0..length).map(|_| uniform_below(&mut rng, 30_000) as u32).collect();
        let row = samples.len() as u64;
        samples
            .push((SampleKey { position: row, epoch: 0, row }, Example { prompt: Vec::new(), tokens: ids }));
        tokens += length;
    }
    samples
}
