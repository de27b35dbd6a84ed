//! Generating texts with a trained model, shared by all ranks.

mod record;
mod requests;

use std::time::Instant;

use ilm_model::Model;

pub use self::record::{Record, Summary};
pub use self::requests::{Request, RequestError, Source, requests};
use crate::assembly::Assembly;
use crate::comm::Collectives;
use crate::config::Experiment;

/// Generates all requests, each on one rank; rank 0 gets every record, in the order of the requests, the others none.
///
/// A text depends on the seed and its own number only, not on the number of ranks nor on the batch it is computed with.
///
/// # Errors
/// Prompts the model has no positions for, failing collectives.
pub fn generate(
    config: &Experiment,
    assembly: &Assembly,
    model: &Model,
    requests: &[Request],
    comm: &mut dyn Collectives,
) -> anyhow::Result<(Vec<Record>, Summary)> {
    let predictor = assembly.predictor(config)?;
    let started = Instant::now();
    let mut mine = Vec::new();
    let batches = requests.chunks(config.evaluation_rows());
    for batch in batches.skip(comm.rank()).step_by(comm.world_size()) {
        let prompts: Vec<_> = batch.iter().map(|request| request.prompt.clone()).collect();
        let predictions = predictor.predict(model, &prompts, config.seed)?;
        for (request, prediction) in batch.iter().zip(&predictions) {
            mine.push(Record::new(request, prediction, &assembly.tokenizer, assembly.special_ids()));
        }
    }
    let all = comm.all_gather("generated texts", &serde_json::to_vec(&mine)?)?;
    let mut records = Vec::new();
    if comm.rank() == 0 {
        for part in &all {
            records.extend(serde_json::from_slice::<Vec<Record>>(part)?);
        }
        records.sort_by_key(|record| record.id);
    }
    let summary = Summary::of(&records, started.elapsed());
    Ok((records, summary))
}
