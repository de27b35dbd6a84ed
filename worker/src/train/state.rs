//! All that training changes: parameters, moments, moving average, and how far it has come.

use std::ops::Range;

use checkpoints::{Checkpoint, Layout, Section, TensorEntry};
use ilm_model::Model;
use xxhash_rust::xxh3::Xxh3Default;

use crate::config::Experiment;
use crate::optim::{AdamW, Ema, Segment};

/// Names of the flat buffers in a checkpoint.
const MASTER: &str = "master";
const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";
const EMA: &str = "ema";

/// The state of a run between two steps.
pub struct TrainState {
    /// Parameters and their gradients.
    pub model: Model,
    /// Moments.
    pub adamw: AdamW,
    /// Moving average of the parameters, if wanted.
    pub ema: Option<Ema>,
    /// Finished optimizer steps.
    pub step: u64,
    /// Samples taken from the global order so far.
    pub position: u64,
}

impl TrainState {
    /// The state before the first step.
    pub fn new(model: Model, config: &Experiment) -> Self {
        let layout = model.arena().layout();
        let segments = layout
            .entries()
            .iter()
            .map(|entry| Segment { range: entry.offset..entry.offset + entry.len, decay: entry.decays() });
        let adamw = AdamW::new(layout.len(), segments);
        let ema = config.trainer.ema_decay.map(|decay| Ema::new(model.arena().params(), decay));
        Self { model, adamw, ema, step: 0, position: 0 }
    }

    /// The flat buffers' elements of `range`, as they go into a checkpoint.
    pub fn sections(&self, range: Range<usize>) -> Vec<Section<'_>> {
        let buffers = [
            (MASTER, self.model.arena().params()),
            (EXP_AVG, &self.adamw.exp_avg),
            (EXP_AVG_SQ, &self.adamw.exp_avg_sq),
        ];
        let average = self.ema.as_ref().map(|ema| (EMA, ema.shadow.as_slice()));
        buffers
            .into_iter()
            .chain(average)
            .map(|(name, data)| Section { name, range: range.clone(), data: &data[range.clone()] })
            .collect()
    }

    /// Takes everything from a checkpoint of the same parameters.
    ///
    /// # Errors
    /// If the checkpoint lacks a part or cannot be read.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), checkpoints::Error> {
        let saved = checkpoint.state();
        let all = 0..self.model.arena().layout().len();
        checkpoint.read(MASTER, all.clone(), self.model.arena_mut().params_mut())?;
        checkpoint.read(EXP_AVG, all.clone(), &mut self.adamw.exp_avg)?;
        checkpoint.read(EXP_AVG_SQ, all.clone(), &mut self.adamw.exp_avg_sq)?;
        if let Some(ema) = &mut self.ema {
            if has_average(checkpoint) {
                checkpoint.read(EMA, all, &mut ema.shadow)?;
                ema.num_updates = saved.ema_updates;
            } else {
                ema.shadow.copy_from_slice(self.model.arena().params());
            }
        }
        self.step = saved.step;
        self.position = saved.position;
        Ok(())
    }

    /// Runs `f` on a model that has the averaged weights, if an average is kept, and the trained ones otherwise.
    pub fn with_averaged_weights<T>(&mut self, f: impl FnOnce(&Model) -> T) -> T {
        self.swap_weights();
        let result = f(&self.model);
        self.swap_weights();
        result
    }

    /// Exchanges the trained weights and their average.
    fn swap_weights(&mut self) {
        if let Some(ema) = &mut self.ema {
            ema.shadow.swap_with_slice(self.model.arena_mut().params_mut());
        }
    }

    /// A checksum of the parameters' bits.
    pub fn parameter_checksum(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        for value in self.model.arena().params() {
            hasher.update(&value.to_bits().to_le_bytes());
        }
        hasher.digest()
    }
}

/// The names and places of a model's parameters, as a checkpoint records them.
pub fn checkpoint_layout(model: &Model) -> Layout {
    let layout = model.arena().layout();
    let entry = |entry: &ilm_model::ParamEntry| TensorEntry {
        name: entry.name.clone(),
        shape: entry.shape.iter().map(|&size| size as u64).collect(),
        offset: entry.offset as u64,
        len: entry.len as u64,
    };
    Layout { len: layout.len() as u64, tensors: layout.entries().iter().map(entry).collect() }
}

/// Whether a checkpoint holds a moving average of the parameters.
pub fn has_average(checkpoint: &Checkpoint) -> bool {
    checkpoint.sections().contains(&EMA)
}

/// Reads the parameters that an evaluation uses: the moving average, or the weights as trained.
///
/// # Errors
/// If the checkpoint cannot be read.
pub fn load_weights(
    model: &mut Model,
    checkpoint: &Checkpoint,
    averaged: bool,
) -> Result<(), checkpoints::Error> {
    let section = if averaged && has_average(checkpoint) { EMA } else { MASTER };
    let all = 0..model.arena().layout().len();
    checkpoint.read(section, all, model.arena_mut().params_mut())
}

/// The part of the flat buffers that `rank` writes: equal parts, cut at multiples of 16 elements.
pub fn slice_of(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    const ALIGNMENT: usize = 16;
    let blocks = len.div_ceil(ALIGNMENT);
    let cut = |rank: usize| (blocks * rank / world_size * ALIGNMENT).min(len);
    cut(rank)..cut(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_everything_once() {
        for len in [0, 1, 15, 16, 17, 1000, 4096] {
            for world_size in 1..9 {
                let mut end = 0;
                for rank in 0..world_size {
                    let slice = slice_of(len, rank, world_size);
                    assert_eq!(slice.start, end);
                    end = slice.end;
                }
                assert_eq!(end, len);
            }
        }
    }
}
