//! Measuring a model on a split: mean losses, and exact match where rows have answers.

mod answers;
mod losses;
mod report;

use std::sync::Arc;

use data_pipeline::{Dataset, Task};
use ilm_model::Model;

pub use self::report::Report;
use crate::assembly::Assembly;
use crate::comm::Collectives;
use crate::config::Experiment;

/// What a model is measured on.
pub struct EvalContext<'a> {
    /// Block sizes, loss weights, sampling.
    pub config: &'a Experiment,
    /// Tokenizer and collator.
    pub assembly: &'a Assembly,
    /// The rows; every one is measured once, over all ranks.
    pub dataset: Arc<dyn Dataset>,
}

/// Measures `model`; the report is the same on all ranks.
///
/// # Errors
/// Rows that cannot be read, failing collectives.
pub fn evaluate(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Report> {
    let losses = losses::mean_losses(context, model, comm)?;
    let answers = match context.config.data.task {
        Task::Star => Some(answers::compare(context, model, comm)?),
        Task::Text => None,
    };
    Ok(Report { losses, answers })
}
