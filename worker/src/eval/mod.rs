//! Measuring a model on a split: mean losses, and exact match where rows have answers.

mod answers;
mod losses;
mod report;

use std::sync::Arc;

use data_pipeline::{Dataset, Task};
use ilm_model::Model;

pub use self::report::{Report, ReportOfStep};
use crate::assembly::Assembly;
use crate::comm::Collectives;
use crate::config::Experiment;
use crate::signals::StopRequest;
use crate::vitals;

/// What a model is measured on.
pub struct EvalContext<'a> {
    /// Block sizes, loss weights, sampling.
    pub config: &'a Experiment,
    /// Tokenizer and collator.
    pub assembly: &'a Assembly,
    /// The rows; every one is measured once, over all ranks.
    pub dataset: Arc<dyn Dataset>,
    /// Ends it early.
    pub stop: &'a StopRequest,
}

impl EvalContext<'_> {
    /// Whether it shall end; asked between two batches or insertions, which is a sign of life.
    fn stops(&self) -> bool {
        vitals::tick();
        self.stop.is_set()
    }
}

/// Measures `model`; the report is the same on all ranks. There is none if any rank was told to stop before the end.
///
/// # Errors
/// Rows that cannot be read, failing collectives.
pub fn evaluate(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Option<Report>> {
    let Some(losses) = losses::mean_losses(context, model, comm)? else { return Ok(None) };
    let answers = match context.config.data.task {
        Task::Star => answers::compare(context, model, comm)?,
        Task::Text => return Ok(Some(Report { losses, answers: None })),
    };
    Ok(answers.map(|answers| Report { losses, answers: Some(answers) }))
}
