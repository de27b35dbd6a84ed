//! Rows of a step are swapped between ranks until all have about as many tokens, before any of them computes.

use data_pipeline::{Deal, PackedBatch, Repacker, StepBatch};

use crate::comm::Collectives;
use crate::config::TrainerConfig;

/// What this rank computes of the step whose rows `step` it has read; `repacker` packs it, if the ranks swap rows. All ranks take part.
///
/// # Errors
/// Failing collectives; memory that is short.
pub fn balance_ranks(
    comm: &mut dyn Collectives,
    trainer: &TrainerConfig,
    repacker: &Repacker,
    step: StepBatch,
) -> anyhow::Result<StepBatch> {
    if !trainer.balances_ranks(comm.world_size()) {
        return Ok(step);
    }
    let lengths: Vec<u8> = step.lengths().into_iter().flat_map(u32::to_le_bytes).collect();
    let lengths = comm.all_gather("row lengths", &lengths)?;
    let lengths: Vec<Vec<u32>> = lengths.iter().map(|bytes| numbers(bytes)).collect();
    let deal = Deal::new(&lengths);
    if deal.is_trivial() {
        return Ok(step);
    }
    let rank = comm.rank();
    let given = comm.all_gather("swapped rows", &step.given(&deal, rank).to_bytes())?;
    let given = given.iter().map(|bytes| PackedBatch::from_bytes(bytes)).collect::<Result<Vec<_>, _>>()?;
    Ok(repacker.deal(step, &deal, rank, &given)?)
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&number| u32::from_le_bytes(number)).collect()
}
