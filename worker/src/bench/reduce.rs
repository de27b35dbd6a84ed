//! The sum of the whole gradient over the ranks by itself, without computation beside it.

use std::time::Instant;

use serde::Serialize;
use tch::Device;

use super::case::Case;
use super::report::Common;
use super::{Bench, BenchError, Samples};
use crate::comm::ReduceOp;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    bytes: usize,
    median_s: f64,
    min_s: f64,
    /// Size of the gradient by time.
    bytes_per_s: f64,
    /// What each rank must send at least, 2 (n-1)/n of the size, by time.
    sent_bytes_per_s: f64,
}

/// Measures the all-reduce of a gradient of the case's model.
///
/// # Errors
/// [`BenchError::OneRank`], or ranks that fail.
pub fn reduce(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let ranks = bench.comm.world_size();
    if ranks < 2 {
        return Err(BenchError::OneRank.into());
    }
    let mut model = case.assembly.build_model(&case.experiment, Device::Cpu)?;
    let mut seconds = Samples::default();
    let grads = model.arena_mut().grads_mut();
    let bytes = size_of_val(grads);
    bench.comm.all_reduce("bench gradients", ReduceOp::Sum, (&mut *grads).into())?; // warms up
    bench.rounds(|comm| {
        comm.barrier("bench reduce")?;
        let start = Instant::now();
        comm.all_reduce("bench gradients", ReduceOp::Sum, (&mut *grads).into())?;
        seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    let bytes_per_s = bytes as f64 / seconds.median();
    bench.print(&Line {
        common: bench.common("reduce", case),
        bytes,
        median_s: seconds.median(),
        min_s: seconds.min(),
        bytes_per_s,
        sent_bytes_per_s: bytes_per_s * 2.0 * (ranks - 1) as f64 / ranks as f64,
    });
    Ok(())
}
