//! Measuring a model on a split: mean losses, and exact match where rows have answers.

mod answers;
mod losses;
mod outcome;
mod report;

use std::sync::Arc;

use data_pipeline::{Dataset, Error, Task};
use ilm_model::Model;

pub use self::outcome::Outcome;
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
    /// The end on a rank that cannot have its rows. Others have perhaps long to go, for nothing: they are told to stop.
    fn fails(&self, error: Error) -> Outcome<()> {
        self.stop.set();
        Outcome::Failed(Some(error))
    }

    /// Whether it shall end; asked between two batches or insertions, which is a sign of life.
    fn stops(&self) -> bool {
        vitals::tick();
        self.stop.is_set()
    }
}

/// Measures `model`; the report is the same on all ranks.
///
/// # Errors
/// A plan that no rank can have, rows that the model refuses, failing collectives.
pub fn evaluate(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Outcome<Report>> {
    let losses = match losses::mean_losses(context, model, comm)? {
        Outcome::Done(losses) => losses,
        Outcome::Stopped => return Ok(Outcome::Stopped),
        Outcome::Failed(error) => return Ok(Outcome::Failed(error)),
    };
    match context.config.data.task {
        Task::Star => {
            let answers = answers::compare(context, model, comm)?;
            Ok(answers.map(|answers| Report { losses, answers: Some(answers) }))
        }
        Task::Text => Ok(Outcome::Done(Report { losses, answers: None })),
    }
}
