//! The flat buffers of a run as sections of a checkpoint, wherever the buffers lie.

use std::borrow::Cow;
use std::ops::Range;

use checkpoints::{Checkpoint, Section};
use ilm_model::{Error, Flat};

use crate::optim::Parts;

/// Names of the flat buffers in a checkpoint.
pub(super) const MASTER: &str = "master";
pub(super) const EXP_AVG: &str = "exp_avg";
pub(super) const EXP_AVG_SQ: &str = "exp_avg_sq";
pub(super) const EMA: &str = "ema";

/// A slice of one flat buffer in host memory: borrowed, or copied from a device.
#[derive(Debug)]
pub struct StateSection<'a> {
    name: &'static str,
    arena: Range<usize>,
    data: Cow<'a, [f32]>,
}

impl<'a> StateSection<'a> {
    /// The elements `arena` of the section, which lie at `place` in `buffer`.
    pub(super) fn new(
        name: &'static str,
        arena: Range<usize>,
        buffer: &'a Flat<f32>,
        place: Range<usize>,
    ) -> Result<Self, Error> {
        // Not all of the buffer: parameters of other ranks may be on their way to the rest.
        let data = match buffer.host_range(place.clone()) {
            Some(values) => Cow::Borrowed(values),
            None => {
                let mut values = vec![0.0; place.len()];
                buffer.read(place, &mut values)?;
                Cow::Owned(values)
            }
        };
        Ok(Self { name, arena, data })
    }

    /// As a checkpoint takes it.
    pub fn view(&self) -> Section<'_> {
        Section { name: self.name, range: self.arena.clone(), data: &self.data }
    }
}

/// Reads `parts` of a checkpoint's section into a buffer that holds them packed.
pub(super) fn read_section(
    checkpoint: &Checkpoint,
    section: &str,
    parts: &Parts,
    buffer: &mut Flat<f32>,
) -> anyhow::Result<()> {
    for part in parts.iter() {
        if let Some(values) = buffer.host_mut() {
            checkpoint.read(section, part.arena, &mut values[part.packed])?;
        } else {
            let mut values = vec![0.0; part.arena.len()];
            checkpoint.read(section, part.arena, &mut values)?;
            buffer.write(part.packed, &values)?;
        }
    }
    Ok(())
}
