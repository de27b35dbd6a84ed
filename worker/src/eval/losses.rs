//! Mean losses over a split, with the drops that belong to its rows in epoch 0.

use data_pipeline::{EvalLoader, EvalPlan, Next};
use ilm_model::Model;

use super::EvalContext;
use super::outcome::{Outcome, sum_up};
use super::report::Losses;
use crate::comm::Collectives;
use crate::train::batch_view;

pub(super) fn mean_losses(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Outcome<Losses>> {
    let config = context.config;
    let dataset = &context.dataset;
    let plan = EvalPlan::new(dataset.len(), config.evaluation_rows(), comm.rank(), comm.world_size())?;
    let collator = context.assembly.collator(config)?;
    let data = &config.data;
    let mut loader = EvalLoader::packed(dataset.clone(), collator, plan, data.threads, data.prefetch_steps)?;

    let mut sums = [0f64; 3];
    let end = loop {
        let batch = match loader.next_unless(&|| context.stop.is_set()) {
            Ok(Next::Item(batch)) if !context.stops() => batch,
            Ok(Next::Item(_) | Next::Stopped) => break Outcome::Stopped,
            Ok(Next::End) => break Outcome::Done(()),
            Err(error) => break context.fails(error),
        };
        let parts = model.loss(&batch_view(&batch), &config.loss)?;
        let totals = [parts.ce.iter().sum::<f64>(), parts.length.iter().sum(), batch.rows() as f64];
        sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum += total);
    };
    let totals = sum_up(comm, "evaluation losses", sums, end)?;
    Ok(totals.map(|[token_ce, stop_loss, examples]| Losses {
        examples: examples as u64,
        loss: (token_ce + stop_loss) / examples,
        token_ce: token_ce / examples,
        stop_loss: stop_loss / examples,
    }))
}
