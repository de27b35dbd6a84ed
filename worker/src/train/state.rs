//! All that training changes: parameters, moments, moving average, and how far it has come.

use std::ops::Range;

use checkpoints::{Checkpoint, Layout, TensorEntry};
use half::slice::HalfFloatSliceExt;
use ilm_model::{Element, Error, Flat, Model};

use super::digest::RunDigest;
use super::guard::Guard;
use super::sections::{EMA, EXP_AVG, EXP_AVG_SQ, MASTER, StateSection, read_section};
use super::{Division, Reducer};
use crate::comm::{Buffer, Collectives};
use crate::config::Experiment;
use crate::optim::{AdamW, Ema, Part, Parts, checksum};

/// The state of a run between two steps, as one rank has it.
pub struct TrainState {
    /// Parameters and their gradients.
    pub model: Model,
    /// Moments of what this rank updates.
    pub adamw: AdamW,
    /// Moving average of what this rank updates, if wanted.
    pub ema: Option<Ema>,
    /// What this rank counts in norms and writes to checkpoints.
    pub own: Parts,
    /// Finished optimizer steps.
    pub step: u64,
    /// Samples taken from the global order so far.
    pub position: u64,
    /// Decides which steps are skipped.
    pub guard: Guard,
    /// What all steps did, once the first begins.
    pub digest: Option<RunDigest>,
}

impl TrainState {
    /// The state before the first step, on a rank that has these elements.
    ///
    /// # Errors
    /// If memory is short.
    pub fn new(model: Model, config: &Experiment, division: Division) -> Result<Self, Error> {
        let arena = model.arena();
        let Division { updated, own } = division;
        let average = |decay| Ema::new(arena.flat_params(), &updated, decay);
        let ema = config.trainer.ema_decay.map(average).transpose()?;
        let adamw = AdamW::new(updated, decaying(&model), arena.device())?;
        Ok(Self { adamw, ema, own, step: 0, position: 0, guard: Guard::default(), digest: None, model })
    }

    /// What this rank writes of the flat buffers to a checkpoint.
    ///
    /// # Errors
    /// If a device fails.
    pub fn sections(&self) -> Result<Vec<StateSection<'_>>, Error> {
        let arena = |part: &Part| part.arena.clone();
        let packed = |part: &Part| part.packed.clone();
        let mut sections = Vec::new();
        let mut add = |name, buffer, place: &dyn Fn(&Part) -> Range<usize>| {
            for part in self.own.iter().flat_map(|own| self.adamw.parts().within(own.arena)) {
                sections.push(StateSection::new(name, part.arena.clone(), buffer, place(&part))?);
            }
            Ok::<_, Error>(())
        };
        add(MASTER, self.model.arena().flat_params(), &arena)?;
        add(EXP_AVG, &self.adamw.exp_avg, &packed)?;
        add(EXP_AVG_SQ, &self.adamw.exp_avg_sq, &packed)?;
        if let Some(ema) = &self.ema {
            add(EMA, &ema.shadow, &packed)?;
        }
        Ok(sections)
    }

    /// What a checkpoint keeps beside the flat buffers, by name.
    pub fn counters(&self) -> impl Iterator<Item = (String, u64)> {
        self.guard.counters().chain(self.digest.into_iter().flat_map(RunDigest::counters))
    }

    /// Elements of all [`sections`](Self::sections) together.
    pub fn section_elements(&self) -> usize {
        self.own.len() * if self.ema.is_some() { 4 } else { 3 }
    }

    /// Takes everything from a checkpoint of the same parameters, whatever ranks wrote it.
    ///
    /// # Errors
    /// If the checkpoint lacks a part or cannot be read.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> anyhow::Result<()> {
        let saved = checkpoint.state();
        let whole = Parts::whole(self.model.arena().layout().len());
        let parts = self.adamw.parts().clone();
        read_section(checkpoint, MASTER, &whole, self.model.arena_mut().flat_params_mut())?;
        read_section(checkpoint, EXP_AVG, &parts, &mut self.adamw.exp_avg)?;
        read_section(checkpoint, EXP_AVG_SQ, &parts, &mut self.adamw.exp_avg_sq)?;
        if let Some(ema) = &mut self.ema {
            if has_average(checkpoint) {
                read_section(checkpoint, EMA, &parts, &mut ema.shadow)?;
                ema.num_updates = saved.ema_updates;
            } else {
                ema.restart(self.model.arena().flat_params(), &parts)?;
            }
        }
        self.step = saved.step;
        self.position = saved.position;
        self.guard = Guard::from_counters(&saved.counters);
        self.digest = RunDigest::from_counters(&saved.counters);
        Ok(())
    }

    /// Runs `f` on a model that has the averaged weights, if an average is kept, and the trained ones otherwise. All ranks call
    /// it together.
    ///
    /// # Errors
    /// Those of `f`, or if weights cannot be exchanged.
    pub fn with_averaged_weights<T>(
        &mut self,
        reducer: &mut Reducer,
        f: impl FnOnce(&Model) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.swap_weights(reducer)?;
        let result = f(&self.model)?;
        self.swap_weights(reducer)?;
        Ok(result)
    }

    /// Exchanges the trained weights and their average, everywhere.
    fn swap_weights(&mut self, reducer: &mut Reducer) -> anyhow::Result<()> {
        reducer.finish_gather()?;
        let Some(ema) = &mut self.ema else { return Ok(()) };
        ema.swap(self.model.arena_mut().flat_params_mut(), self.adamw.parts())?;
        Ok(reducer.share_parameters()?)
    }

    /// Sets the average to the parameters, if one is kept.
    ///
    /// # Errors
    /// If a device fails.
    pub fn restart_average(&mut self) -> Result<(), Error> {
        let Some(ema) = &mut self.ema else { return Ok(()) };
        ema.restart(self.model.arena().flat_params(), self.adamw.parts())
    }

    /// Gives all ranks the parameters of rank 0.
    ///
    /// # Errors
    /// If a collective or a device fails.
    pub fn broadcast_parameters(&mut self, comm: &mut dyn Collectives) -> anyhow::Result<()> {
        let params = self.model.arena_mut().flat_params_mut();
        if let Some(params) = params.host_mut() {
            return Ok(comm.broadcast("parameters", params.into())?);
        }
        let mut held = on_host(params)?;
        comm.broadcast("parameters", Buffer::F32(&mut held))?;
        Ok(params.write(0..held.len(), &held)?)
    }

    /// A checksum of the parameters' bits, on all threads.
    ///
    /// # Errors
    /// If a device fails.
    pub fn parameter_checksum(&self) -> Result<u64, Error> {
        let params = self.model.arena().flat_params();
        match params.host() {
            Some(values) => Ok(checksum(values)),
            None => Ok(checksum(&on_host(params)?)),
        }
    }

    /// The same of the parameters that products take rounded, as this rank has them; none if products take none so.
    ///
    /// # Errors
    /// If a device fails.
    pub fn rounded_checksum(&self) -> Result<Option<u64>, Error> {
        let arena = self.model.arena();
        let Some((rounded, start)) = arena.flat_rounded().zip(arena.rounded_from()) else { return Ok(None) };
        let held;
        let values = match rounded.host() {
            Some(values) => values,
            None => {
                held = on_host(rounded)?;
                &held
            }
        };
        Ok(Some(checksum(values[start..].reinterpret_cast())))
    }
}

fn on_host<T: Element>(flat: &Flat<T>) -> Result<Vec<T>, Error> {
    let mut held = vec![T::default(); flat.len()];
    flat.read(0..held.len(), &mut held)?;
    Ok(held)
}

/// The ranges of the arena that weight decay applies to, up to the next parameter: what lies between them is 0 and stays so.
fn decaying(model: &Model) -> Vec<Range<usize>> {
    let layout = model.arena().layout();
    let entries = layout.entries();
    let ends = entries.iter().skip(1).map(|next| next.offset).chain([layout.len()]);
    let ranges = entries.iter().zip(ends).filter(|(entry, _)| entry.decays());
    ranges.map(|(entry, end)| entry.offset..end).collect()
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
pub fn load_weights(model: &mut Model, checkpoint: &Checkpoint, averaged: bool) -> anyhow::Result<()> {
    let section = if averaged && has_average(checkpoint) { EMA } else { MASTER };
    let whole = Parts::whole(model.arena().layout().len());
    read_section(checkpoint, section, &whole, model.arena_mut().flat_params_mut())
}
