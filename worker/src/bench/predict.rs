//! Generation out of nothing: tokens inserted into a batch of rows that end at lengths like those of the data.

use std::time::Instant;

use ilm_model::{PredictorConfig, Prompt};
use serde::Serialize;

use super::case::Case;
use super::report::Common;
use super::{Bench, Samples};

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    rows: usize,
    /// Inserted in a round.
    tokens: usize,
    /// Of a round.
    median_s: f64,
    min_s: f64,
    tokens_per_s: f64,
}

/// Measures the experiment's own way of sampling on as many rows as a step has examples. The weights know nothing, so each row
/// is told its length instead of stopping by itself.
///
/// # Errors
/// Settings that do not fit the model, or memory is short.
pub fn predict(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let experiment = &case.experiment;
    let model = case.assembly.build_model(experiment, tch::Device::Cpu)?;
    let stopping_threshold = experiment.predictor.stopping_threshold.map(|_| 1.0);
    let predictor = PredictorConfig { stopping_threshold, ..experiment.predictor.clone() };
    let predictor =
        case.assembly.predictor(&crate::config::Experiment { predictor, ..experiment.clone() })?;
    let special = case.assembly.special_ids();
    let mut prompts = Vec::new();
    for row in 0..experiment.global_batch_size as u64 {
        let example = case.dataset.example(row % case.dataset.len())?.unwrap_or_default();
        let most = if bench.quick { 4 } else { experiment.block_size - 2 };
        let max_length = Some(2 + example.tokens.len().min(most));
        prompts.push(Prompt { max_length, ..Prompt::unconditional(row, special) });
    }
    let run = || predictor.predict(&model, &prompts, experiment.seed);
    // Every round inserts the same tokens as this one, which warms up.
    let tokens = run()?.iter().map(|row| row.insertions.len()).sum();
    let mut seconds = Samples::default();
    bench.rounds(|_| {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    bench.print(&Line {
        common: bench.common("predict", case),
        rows: prompts.len(),
        tokens,
        median_s: seconds.median(),
        min_s: seconds.min(),
        tokens_per_s: tokens as f64 / seconds.median(),
    });
    Ok(())
}
