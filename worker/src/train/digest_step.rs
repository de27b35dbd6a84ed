//! The end of a step: ranks prove from time to time that their parameters are the same, and the step joins the digest.

use anyhow::Context;
use data_pipeline::StepBatch;

use super::digest::{Bits, StepDigest};
use super::{Reducer, StepFigures, TrainState};
use crate::comm::{Collectives, assert_equal};
use crate::config::Experiment;

/// Adds the step that `state` has just finished on `batch` to its digest. Every `trainer.checksum_every_n_steps` all ranks must
/// have the same parameters, before anything is saved of them. With a sharded optimizer a rank's wrong copy of what another
/// rank updates is gone with the next step; what it updates wrongly itself, all ranks have alike.
///
/// # Errors
/// [`CommError::Unequal`](crate::comm::CommError::Unequal), alike on all ranks, names the ranks that differ; a failing collective
/// or device.
pub fn digest_step(
    state: &mut TrainState,
    comm: &mut dyn Collectives,
    reducer: &mut Reducer,
    config: &Experiment,
    batch: &StepBatch,
    figures: &StepFigures,
) -> anyhow::Result<StepDigest> {
    let step = state.step;
    let due = config.trainer.checksum_every_n_steps.is_some_and(|every| step.is_multiple_of(every));
    let parameters = if due { Some(common_parameters(state, comm, reducer)?) } else { None };
    let mut line = StepDigest {
        step,
        position: batch.position,
        ranks: comm.world_size() as u64,
        samples: Bits(figures.global.samples),
        loss: Bits::of(figures.loss()),
        grad_norm: Bits::of(figures.grad_norm),
        skipped: figures.skipped,
        parameters: parameters.map(Bits),
        since: step,
        digest: Bits(0),
    };
    if let Some(digest) = &mut state.digest {
        digest.add(&mut line);
    }
    Ok(line)
}

/// The checksum of the parameters, which are the same on all ranks: as products take them, and themselves.
fn common_parameters(
    state: &TrainState,
    comm: &mut dyn Collectives,
    reducer: &mut Reducer,
) -> anyhow::Result<u64> {
    let mut same = |name, checksum: u64| {
        assert_equal(comm, name, format_args!("{checksum:016x}"))
            .with_context(|| format!("after step {}", state.step))
    };
    reducer.finish_gather()?;
    if let Some(checksum) = state.rounded_checksum()? {
        same("rounded parameters", checksum)?;
    }
    reducer.complete_parameters()?;
    let checksum = state.parameter_checksum()?;
    same("parameters", checksum)?;
    Ok(checksum)
}
