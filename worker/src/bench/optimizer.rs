//! The update of all parameters beside a plain copy: both are bound by the speed of memory.

use std::time::Instant;

use ilm_model::parallel;
use serde::Serialize;

use super::case::Case;
use super::report::Common;
use super::step::start;
use super::{Bench, Samples};
use crate::optim::{Update, squared_norm};
use crate::train::{Reducer, TrainState, update_parameters};

/// Bytes that an update must move of a parameter: gradient once for the norm and once for the update, parameter and both
/// moments read and written.
const BYTES: f64 = 4.0 * 8.0;
/// Elements that a thread copies at a time.
const CHUNK: usize = 1 << 16;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    parameters: usize,
    /// Of the norm and the update.
    median_s: f64,
    min_s: f64,
    bytes_per_s: f64,
    /// Of a copy by all threads, reads and writes counted.
    copy_bytes_per_s: f64,
}

/// Measures the norm of the gradient and AdamW on the case's model.
///
/// # Errors
/// Memory is short.
pub fn optimizer(bench: &mut Bench, case: &Case) -> anyhow::Result<()> {
    let (mut state, mut reducer) = start(bench, case)?;
    let len = state.model.arena().layout().len();
    let (source, mut target) = (vec![1f32; len], vec![0f32; len]);
    let (mut seconds, mut copy_seconds) = (Samples::default(), Samples::default());
    let mut copy = || {
        let chunks = target.chunks_mut(CHUNK).zip(source.chunks(CHUNK)).collect();
        parallel::for_each_item(chunks, |(to, from): (&mut [f32], &[f32])| to.copy_from_slice(from));
    };
    update(&mut state, &mut reducer, case)?; // warms up
    copy();
    bench.rounds(|_| {
        let start = Instant::now();
        update(&mut state, &mut reducer, case)?;
        seconds.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        copy();
        copy_seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    })?;
    let median_s = seconds.median();
    bench.print(&Line {
        common: bench.common("optimizer", case),
        parameters: state.model.arena().layout().parameters(),
        median_s,
        min_s: seconds.min(),
        bytes_per_s: BYTES * len as f64 / median_s,
        copy_bytes_per_s: 8.0 * len as f64 / copy_seconds.median(),
    });
    Ok(())
}

fn update(state: &mut TrainState, reducer: &mut Reducer, case: &Case) -> anyhow::Result<()> {
    let grad_norm = squared_norm(state.model.arena().flat_grads(), state.adamw.parts())?.sqrt();
    state.step += 1;
    let grad_scale = 1.0 / (1.0 + grad_norm);
    let update = Update { lr: 1e-4, step: state.step, grad_scale, average_weight: 0.0 };
    update_parameters(state, &case.experiment, reducer, update)?;
    Ok(reducer.finish_gather()?)
}
