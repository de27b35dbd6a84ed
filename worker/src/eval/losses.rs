//! Mean losses over a split, with the drops that belong to its rows in epoch 0.

use data_pipeline::{EvalLoader, EvalPlan, Next};
use ilm_model::Model;

use super::EvalContext;
use super::report::Losses;
use crate::comm::{Collectives, ReduceOp};
use crate::train::batch_view;

pub(super) fn mean_losses(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Option<Losses>> {
    let config = context.config;
    let dataset = &context.dataset;
    let plan = EvalPlan::new(dataset.len(), config.evaluation_rows(), comm.rank(), comm.world_size())?;
    let collator = context.assembly.collator(config)?;
    let data = &config.data;
    let mut loader = EvalLoader::packed(dataset.clone(), collator, plan, data.threads, data.prefetch_steps)?;

    // The last one counts the ranks that were told to stop.
    let mut sums = [0f64; 4];
    loop {
        let batch = match loader.next_unless(&|| context.stop.is_set())? {
            Next::Item(batch) if !context.stops() => batch,
            Next::End => break,
            Next::Item(_) | Next::Stopped => {
                sums[3] = 1.0;
                break;
            }
        };
        let parts = model.loss(&batch_view(&batch), &config.loss)?;
        let totals = [parts.ce.iter().sum::<f64>(), parts.length.iter().sum(), batch.rows() as f64];
        sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum += total);
    }
    comm.all_reduce("evaluation losses", ReduceOp::Sum, sums[..].as_mut().into())?;
    let [token_ce, stop_loss, examples, stopped] = sums;
    Ok((stopped == 0.0).then(|| Losses {
        examples: examples as u64,
        loss: (token_ce + stop_loss) / examples,
        token_ce: token_ce / examples,
        stop_loss: stop_loss / examples,
    }))
}
