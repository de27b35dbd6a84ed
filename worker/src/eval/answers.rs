//! Generating the answers of a split and comparing them with what they should be.

use data_pipeline::{EvalLoader, EvalPlan, Next, PromptBatch};
use ilm_model::metrics::{Scored, reference_scores, score};
use ilm_model::{Model, Prediction, Prompt};

use super::EvalContext;
use super::outcome::{Outcome, sum_up};
use super::report::Answers;
use crate::comm::Collectives;

/// Sums over rows, in the order of the fields of [`Answers`], and the number of rows.
type Sums = [f64; 6];

pub(super) fn compare(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Outcome<Answers>> {
    let config = context.config;
    let (pad, block) = (context.assembly.special_ids().pad, config.block_size);
    let predictor = context.assembly.predictor(config)?;
    let plan =
        EvalPlan::new(context.dataset.len(), config.evaluation_rows(), comm.rank(), comm.world_size())?;
    let collator = context.assembly.collator(config)?;
    let data = &config.data;
    let dataset = context.dataset.clone();
    let mut loader = EvalLoader::prompts(dataset, collator, plan, data.threads, data.prefetch_steps)?;

    let mut sums = Sums::default();
    let end = loop {
        let batch = match loader.next_unless(&|| context.stop.is_set()) {
            Ok(Next::Item(batch)) => batch,
            Ok(Next::Stopped) => break Outcome::Stopped,
            Ok(Next::End) => break Outcome::Done(()),
            Err(error) => break context.fails(error),
        };
        let prompts = prompts(&batch);
        let predicted = predictor.predict_unless(&|| context.stops(), model, &prompts, config.seed)?;
        let Some(predictions) = predicted else { break Outcome::Stopped };
        add_scores(&mut sums, &batch, &predictions, (pad, block));
    };
    let totals = sum_up(comm, "evaluation answers", sums, end)?;
    Ok(totals.map(|[exact_match, token_accuracy, reference_exact, reference_accuracy, inserted, rows]| {
        Answers {
            exact_match: exact_match / rows,
            token_accuracy: token_accuracy / rows,
            reference_exact_match: reference_exact / rows,
            reference_token_accuracy: reference_accuracy / rows,
            inserted_tokens: inserted / rows,
        }
    }))
}

fn prompts(batch: &PromptBatch) -> Vec<Prompt> {
    let prompt = |(row, &id): (usize, &u64)| {
        let tokens = batch.row(row);
        Prompt {
            id,
            tokens: batch.tokens[tokens.clone()].to_vec(),
            token_types: batch.token_types[tokens].to_vec(),
            closed: None,
            max_length: None,
        }
    };
    batch.sample_ids.iter().enumerate().map(prompt).collect()
}

/// The reference pads answers with `pad` to `block` tokens.
fn add_scores(sums: &mut Sums, batch: &PromptBatch, predictions: &[Prediction], (pad, block): (i64, usize)) {
    let rows: Vec<Scored<'_>> = predictions
        .iter()
        .enumerate()
        .map(|(row, prediction)| Scored {
            prompt: &batch.tokens[batch.row(row)],
            target: batch.target(row),
            predicted: &prediction.tokens,
        })
        .collect();
    let as_number = |holds: bool| f64::from(u8::from(holds));
    let references = reference_scores(&rows, block, pad);
    for ((row, reference), prediction) in rows.iter().zip(references).zip(predictions) {
        let corrected = score(*row);
        let values = [
            as_number(corrected.exact_match),
            corrected.token_accuracy,
            as_number(reference.exact_match),
            reference.token_accuracy,
            prediction.insertions.len() as f64,
            1.0,
        ];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}
