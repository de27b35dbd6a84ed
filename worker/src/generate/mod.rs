//! Generating texts with a trained model, shared by all ranks.

mod record;
mod requests;

use ilm_model::Model;

pub use self::record::{Record, Summary};
pub use self::requests::{Limits, Request, RequestError, Source, requests};
use crate::assembly::Assembly;
use crate::comm::{Buffer, Collectives, ReduceOp};
use crate::config::Experiment;
use crate::partial::PartialFile;
use crate::signals::StopRequest;
use crate::vitals;

/// What all ranks have generated.
#[derive(Debug)]
pub struct Generated {
    /// On rank 0 every new text, in the order of the requests; none on others.
    pub records: Vec<Record>,
    /// Whether that is all that was asked for; no rank was stopped.
    pub complete: bool,
}

/// Generates all requests, each on one rank, up to a request to stop, which is noticed between two steps. `file` gets this rank's
/// texts as they are finished.
///
/// A text depends on the seed and its own number only, not on the number of ranks nor on the batch it is computed with.
///
/// # Errors
/// Prompts the model has no positions for, failing collectives, a disk that refuses.
pub fn generate(
    (config, assembly, model): (&Experiment, &Assembly, &Model),
    requests: &[&Request],
    file: &mut PartialFile<Record>,
    stop: &StopRequest,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Generated> {
    let predictor = assembly.predictor(config)?;
    let mut mine = Vec::new();
    let batches = requests.chunks(config.evaluation_rows());
    for batch in batches.skip(comm.rank()).step_by(comm.world_size()) {
        let prompts: Vec<_> = batch.iter().map(|request| request.prompt.clone()).collect();
        let stops = || {
            vitals::tick();
            stop.is_set()
        };
        let predictions = predictor.predict_unless(&stops, model, &prompts, config.seed)?;
        let Some(predictions) = predictions else { break };
        for (request, prediction) in batch.iter().zip(&predictions) {
            let record = Record::new(request, prediction, &assembly.tokenizer, assembly.special_ids());
            file.append(record.id, request, &record)?;
            mine.push(record);
        }
    }
    let all = comm.all_gather("generated texts", &serde_json::to_vec(&mine)?)?;
    let mut finished = [mine.len() as f64];
    comm.all_reduce("finished texts", ReduceOp::Sum, Buffer::F64(&mut finished))?;
    let mut records = Vec::new();
    if comm.rank() == 0 {
        for part in &all {
            records.extend(serde_json::from_slice::<Vec<Record>>(part)?);
        }
        records.sort_by_key(|record| record.id);
    }
    Ok(Generated { records, complete: finished == [requests.len() as f64] })
}
