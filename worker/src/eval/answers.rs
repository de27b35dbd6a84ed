//! Generating the answers of a split and comparing them with what they should be.

use data_pipeline::{EvalLoader, EvalPlan, Next, PromptBatch};
use ilm_model::metrics::{Scored, reference_scores, score};
use ilm_model::{Model, Prediction, Prompt};

use super::EvalContext;
use super::report::Answers;
use crate::comm::{Collectives, ReduceOp};

/// Sums over rows, in the order of the fields of [`Answers`], the number of rows, and that of the ranks that were told to stop.
type Sums = [f64; 7];

const STOPPED: usize = 6;

pub(super) fn compare(
    context: &EvalContext<'_>,
    model: &Model,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Option<Answers>> {
    let config = context.config;
    let pad = context.assembly.special_ids().pad;
    let predictor = context.assembly.predictor(config)?;
    let plan =
        EvalPlan::new(context.dataset.len(), config.evaluation_rows(), comm.rank(), comm.world_size())?;
    let collator = context.assembly.collator(config)?;
    let data = &config.data;
    let dataset = context.dataset.clone();
    let mut loader = EvalLoader::prompts(dataset, collator, plan, data.threads, data.prefetch_steps)?;

    let mut sums = Sums::default();
    loop {
        let batch = match loader.next_unless(&|| context.stop.is_set())? {
            Next::Item(batch) => Some(batch),
            Next::End => break,
            Next::Stopped => None,
        };
        let predict = |batch: &PromptBatch| {
            predictor.predict_unless(&|| context.stops(), model, &prompts(batch), config.seed)
        };
        let predictions = batch.as_ref().map(predict).transpose()?.flatten();
        let Some((batch, predictions)) = batch.zip(predictions) else {
            sums[STOPPED] = 1.0;
            break;
        };
        add_scores(&mut sums, &batch, &predictions, pad);
    }
    comm.all_reduce("evaluation answers", ReduceOp::Sum, sums[..].as_mut().into())?;
    let [
        exact_match,
        token_accuracy,
        reference_exact_match,
        reference_token_accuracy,
        inserted,
        rows,
        stopped,
    ] = sums;
    Ok((stopped == 0.0).then(|| Answers {
        exact_match: exact_match / rows,
        token_accuracy: token_accuracy / rows,
        reference_exact_match: reference_exact_match / rows,
        reference_token_accuracy: reference_token_accuracy / rows,
        inserted_tokens: inserted / rows,
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

fn add_scores(sums: &mut Sums, batch: &PromptBatch, predictions: &[Prediction], pad: i64) {
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
    for ((row, reference), prediction) in rows.iter().zip(reference_scores(&rows, pad)).zip(predictions) {
        let corrected = score(*row);
        let values = [
            as_number(corrected.exact_match),
            corrected.token_accuracy,
            as_number(reference.exact_match),
            reference.token_accuracy,
            prediction.insertions.len() as f64,
            1.0,
            0.0,
        ];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}
