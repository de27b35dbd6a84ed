//! AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101) on the parts of the arena that a rank updates.

use std::ops::Range;

use ilm_model::{Error, Flat, UpdateParts};
use tch::Device;

use super::device::{self, Packed};
use super::fused::Chunk;
use super::parallel::{self, CHUNK};
use super::parts::{Part, Parts};
use crate::config::OptimizerConfig;

/// A range of the arena that weight decay applies to.
pub(super) type Decaying = Range<usize>;

/// First and second moments of the gradient, for the parts that a rank updates.
#[derive(Debug)]
pub struct AdamW {
    /// m, running mean of the gradient, packed as the parts are.
    pub exp_avg: Flat<f32>,
    /// v, running mean of the squared gradient, packed as the parts are.
    pub exp_avg_sq: Flat<f32>,
    parts: Parts,
    /// Ascending ranges of the arena that are decayed; what lies between them is not.
    decaying: Vec<Decaying>,
}

/// What varies from step to step.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Number of this update, from 1.
    pub step: u64,
    /// Multiplies the gradient first: clipping, and division by the number of examples.
    pub grad_scale: f64,
    /// How far a moving average goes towards the updated parameters.
    pub average_weight: f64,
}

/// The constants of one update in the precision of the buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefficients {
    pub(super) grad_scale: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) keep: f32,
    pub(super) step_size: f32,
    pub(super) inverse_sqrt_correction2: f32,
    pub(super) eps: f32,
    pub(super) average_weight: f32,
}

impl AdamW {
    /// Zero moments for `parts`, with the ascending ranges of the arena that are decayed.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(
        parts: Parts,
        decaying: impl IntoIterator<Item = Range<usize>>,
        device: Device,
    ) -> Result<Self, Error> {
        Ok(Self {
            exp_avg: Flat::zeros(parts.len(), device)?,
            exp_avg_sq: Flat::zeros(parts.len(), device)?,
            decaying: Parts::new(usize::MAX, decaying).iter().map(|part| part.arena).collect(),
            parts,
        })
    }

    /// The parts that are updated.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// One update, in place, of what lies in `window`:
    /// `p -= lr wd p`, `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`, `p -= lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)`;
    /// then `average -= weight (average - p)`, and `p` rounded. `average` is packed as the moments are. Gradients are used up.
    ///
    /// # Errors
    /// A device fails.
    pub fn step(
        &mut self,
        config: &OptimizerConfig,
        update: Update,
        window: Range<usize>,
        mut flat: UpdateParts<'_>,
        average: Option<&mut Flat<f32>>,
    ) -> Result<(), Error> {
        let decayed = Coefficients::new(config, update, config.weight_decay);
        let kept = Coefficients { keep: 1.0, ..decayed };
        let Self { exp_avg, exp_avg_sq, parts, decaying } = self;
        let mut packed = Packed { exp_avg, exp_avg_sq, average };
        let of_part = |part: &Part| within(decaying, part.arena.clone());
        let tasks = parts.within(window.clone()).flat_map(|part| pieces(&part, of_part(&part)));
        match chunks(tasks, &window, &mut flat, &mut packed, [kept, decayed]) {
            Some(chunks) => {
                parallel::map(chunks, Chunk::update);
                Ok(())
            }
            None => parts
                .within(window)
                .try_for_each(|part| device::update(&decayed, &part, of_part(&part), &mut flat, &mut packed)),
        }
    }
}

/// What of ascending ranges lies in `window`.
fn within(ranges: &[Range<usize>], window: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = ranges.partition_point(|range| range.end <= window.start);
    let overlapping = ranges[first..].iter().take_while({
        let end = window.end;
        move |range| range.start < end
    });
    overlapping.map(move |range| range.start.max(window.start)..range.end.min(window.end))
}

/// A part cut into tasks: whether it is decayed changes at the borders of `decaying`, and no task is too long.
fn pieces(part: &Part, decaying: impl Iterator<Item = Range<usize>>) -> Vec<(Part, bool)> {
    let mut kinds = Vec::new();
    let mut at = part.arena.start;
    for range in decaying {
        kinds.push((at..range.start, false));
        at = range.end;
        kinds.push((range, true));
    }
    kinds.push((at..part.arena.end, false));
    let shift = |at: usize| part.packed.start + (at - part.arena.start);
    let cut = |(range, decays): (Range<usize>, bool)| {
        range.clone().step_by(CHUNK).map(move |start| {
            let arena = start..range.end.min(start + CHUNK);
            (Part { packed: shift(arena.start)..shift(arena.end), arena }, decays)
        })
    };
    kinds.into_iter().flat_map(cut).collect()
}

/// The tasks with their slices of all buffers, if these are in host memory.
fn chunks<'a>(
    tasks: impl Iterator<Item = (Part, bool)>,
    window: &Range<usize>,
    flat: &'a mut UpdateParts<'_>,
    packed: &'a mut Packed<'_>,
    [kept, decayed]: [Coefficients; 2],
) -> Option<Vec<Chunk<'a>>> {
    let grads = flat.grads.host()?;
    // The rest of the parameters, rounded ones too, may be on its way to other ranks.
    let window = window.start.min(grads.len())..window.end.min(grads.len());
    let mut params = Cursor { at: window.start, rest: flat.params.host_range_mut(window.clone())? };
    let mut exp_avg = Cursor::new(packed.exp_avg.host_mut()?);
    let mut exp_avg_sq = Cursor::new(packed.exp_avg_sq.host_mut()?);
    let mut average = packed.average.as_mut().and_then(|average| average.host_mut()).map(Cursor::new);
    let rounded = flat.rounded.as_mut().and_then(|rounded| rounded.host_range_mut(window.clone()));
    let mut rounded = rounded.map(|rest| Cursor { at: window.start, rest });
    let chunk = |(part, decays): (Part, bool)| Chunk {
        coefficients: if decays { decayed } else { kept },
        params: params.take(&part.arena),
        grads: &grads[part.arena.clone()],
        exp_avg: exp_avg.take(&part.packed),
        exp_avg_sq: exp_avg_sq.take(&part.packed),
        average: average.as_mut().map(|average| average.take(&part.packed)),
        rounded: rounded.as_mut().map(|rounded| rounded.take(&part.arena)),
    };
    Some(tasks.map(chunk).collect())
}

/// Hands out ascending ranges of a slice.
struct Cursor<'a, T> {
    rest: &'a mut [T],
    at: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn new(rest: &'a mut [T]) -> Self {
        Self { rest, at: 0 }
    }

    fn take(&mut self, range: &Range<usize>) -> &'a mut [T] {
        let rest = &mut std::mem::take(&mut self.rest)[range.start - self.at..];
        let (taken, rest) = rest.split_at_mut(range.len());
        self.rest = rest;
        self.at = range.end;
        taken
    }
}

impl Coefficients {
    fn new(config: &OptimizerConfig, update: Update, weight_decay: f64) -> Self {
        let [beta1, beta2] = config.betas;
        let correction1 = 1.0 - beta1.powf(update.step as f64);
        let correction2 = 1.0 - beta2.powf(update.step as f64);
        Self {
            grad_scale: update.grad_scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            keep: (1.0 - update.lr * weight_decay) as f32,
            step_size: (update.lr / correction1) as f32,
            inverse_sqrt_correction2: (1.0 / correction2.sqrt()) as f32,
            eps: config.eps as f32,
            average_weight: update.average_weight as f32,
        }
    }
}

#[cfg(test)]
#[path = "adamw_tests.rs"]
mod tests;
