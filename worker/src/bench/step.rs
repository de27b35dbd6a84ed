//! The training step as training takes it, beside the speed of its matrix products on the same machine at the same time.

use std::time::{Duration, Instant};

use data_pipeline::{Repacker, StepBatch};
use serde::Serialize;
use tch::Device;

use super::case::Case;
use super::gemm::Products;
use super::report::{Common, peak_rss_mib};
use super::work::Work;
use super::{Bench, Samples};
use crate::comm::{Collectives, ReduceOp};
use crate::device::RankDevice;
use crate::train::{RankFlags, Reducer, TrainState, balance_ranks, division, train_step};

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    /// Of one step; the figures below are of the median.
    median_s: f64,
    min_s: f64,
    /// How long the rank that waited least stood still in a step for gradients and parameters of others.
    exposed_s: f64,
    /// The same of the rank that waited most, so with its waiting for a slower rank.
    rank_wait_s: f64,
    examples_per_s: f64,
    /// Visible tokens, special ones included.
    tokens_per_s: f64,
    /// Of one step.
    useful_flops: f64,
    flops_per_s: f64,
    /// Of all ranks together.
    gemm_ceiling_flops_per_s: f64,
    share_of_ceiling: f64,
    /// Of rank 0, before anything but steps was measured.
    peak_rss_mib: f64,
}

/// Measures the steps of a case: swapping rows, forward, backward, reduction, clipping, AdamW, gathering.
///
/// # Errors
/// Whatever a step fails with.
pub fn step(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let batches = bench.batches(case)?;
    let mine = Work::of(&batches);
    let (mut state, mut reducer) = start(bench, case)?;
    let repacker = case.repacker();
    pass(&mut state, case, bench.comm, &mut reducer, &batches, &repacker)?; // warms up
    let peak_rss_mib = peak_rss_mib();
    let mut products = Products::new(state.model.shape(), &mine)?;
    let [mut seconds, mut exposed, mut rank_wait] = [(); 3].map(|()| Samples::default());
    bench.rounds(|comm| {
        let passed = pass(&mut state, case, comm, &mut reducer, &batches, &repacker)?;
        seconds.push(passed.seconds);
        exposed.push(passed.exposed);
        rank_wait.push(passed.rank_wait);
        products.round()
    })?;

    let mut sums = mine.to_sums();
    bench.comm.all_reduce("bench work", ReduceOp::Sum, sums[..].as_mut().into())?;
    let mut ceiling = [products.flops_per_s()];
    bench.comm.all_reduce("bench ceiling", ReduceOp::Sum, ceiling[..].as_mut().into())?;
    let work = Work::from_sums(sums);
    let steps = batches.len().max(1) as f64;
    let median_s = seconds.median();
    let useful_flops = work.flops(state.model.shape()) / steps;
    let per_second = |amount: f64| amount / steps / median_s;
    bench.print(&Line {
        common: bench.common("step", case),
        median_s,
        min_s: seconds.min(),
        exposed_s: exposed.median(),
        rank_wait_s: rank_wait.median(),
        examples_per_s: per_second(work.examples),
        tokens_per_s: per_second(work.tokens),
        useful_flops,
        flops_per_s: useful_flops / median_s,
        gemm_ceiling_flops_per_s: ceiling[0],
        share_of_ceiling: useful_flops / median_s / ceiling[0],
        peak_rss_mib,
    });
    Ok(())
}

/// The state before the first step, and what exchanges its buffers.
pub(super) fn start(bench: &mut Bench, case: &Case) -> anyhow::Result<(TrainState, Reducer)> {
    let model = case.assembly.build_model(&case.experiment, Device::Cpu)?;
    let trainer = &case.experiment.trainer;
    let division = division(trainer, model.arena(), bench.comm.rank(), bench.comm.world_size());
    let state = TrainState::new(model, &case.experiment, division)?;
    let device = RankDevice::processor();
    // SAFETY: both end with the measurement, the reducer first, and a step goes by the rules that the reducer sets.
    let reducer = unsafe { Reducer::connect(&device, bench.comm, trainer, state.model.arena())? };
    Ok((state, reducer))
}

/// Of a step, in the mean, in seconds.
struct Passed {
    seconds: f64,
    exposed: f64,
    rank_wait: f64,
}

/// Makes the given steps in a row, as training does: parameters of a step arrive during the next one. So what several ranks make first
/// is a step that is not counted, and the parameters of the last one are waited for afterwards.
fn pass(
    state: &mut TrainState,
    case: &Case,
    comm: &mut dyn Collectives,
    reducer: &mut Reducer,
    batches: &[StepBatch],
    repacker: &Repacker,
) -> anyhow::Result<Passed> {
    let mut make = |comm: &mut dyn Collectives, batch: &StepBatch| {
        let batch = balance_ranks(comm, &case.experiment.trainer, repacker, batch.clone())?;
        train_step(state, &case.experiment, comm, reducer, &batch, RankFlags::default())
    };
    comm.barrier("bench pass")?;
    if let Some(last) = batches.last().filter(|_| comm.world_size() > 1) {
        make(comm, last)?;
    }
    let (start, mut exposed, mut rank_wait) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    for batch in batches {
        let figures = make(comm, batch)?.global;
        exposed += figures.comm_exposed;
        rank_wait += figures.rank_wait;
    }
    let [seconds, exposed, rank_wait] =
        [start.elapsed(), exposed, rank_wait].map(|time| time.as_secs_f64() / batches.len().max(1) as f64);
    let passed = Passed { seconds, exposed, rank_wait };
    reducer.finish_gather()?;
    Ok(passed)
}
