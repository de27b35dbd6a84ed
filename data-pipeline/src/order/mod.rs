//! The global order: one integer, the data position, names an epoch and a row; nothing else is needed to resume.
//!
//! Sources take turns at fixed shares, the samples of a source come from its lanes in turn, and a lane passes through
//! row groups in a new order each epoch. Any position is found by arithmetic.

mod epoch;
mod mixture;
mod source;

use std::ops::Range;

use crate::{
    dataset::Dataset,
    drop::SampleKey,
    error::{Error, Result},
    order::{
        mixture::Mixture,
        source::{Shuffle, SourceOrder},
    },
};

/// How rows are put in order; a run must keep these settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderSettings {
    /// Seed of the run.
    pub seed: u64,
    /// A new order each epoch; false leaves the rows as they lie.
    pub shuffle: bool,
    /// Row groups whose rows are mixed with one another within a lane.
    pub window_groups: usize,
    /// Lanes that every global batch takes its samples from in turn.
    pub lanes: usize,
}

/// Maps positions of the whole run to samples.
#[derive(Debug)]
pub struct GlobalOrder {
    names: Vec<String>,
    sources: Vec<SourceOrder>,
    /// None for a single source.
    mixture: Option<Mixture>,
    len: u64,
}

/// How far a source has been read.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceProgress {
    /// Name of the source.
    pub name: String,
    /// Samples taken from it.
    pub samples: u64,
    /// The same in passes over the source.
    pub epochs: f64,
}

impl GlobalOrder {
    /// The order of a data set's rows.
    ///
    /// # Errors
    /// [`Error::Setting`] when the data set or one of its parts has no rows, or a setting is zero.
    pub fn new(dataset: &dyn Dataset, settings: OrderSettings) -> Result<Self> {
        for (name, value) in [("window_groups", settings.window_groups), ("canonical_lanes", settings.lanes)]
        {
            if value == 0 {
                return Err(Error::Setting(format!("data.{name} = 0 makes no sense; use at least 1")));
            }
        }
        if u32::try_from(dataset.groups().len()).is_err() {
            return Err(Error::Setting("the data set has more than 2^32 row groups; use larger ones".into()));
        }
        let parts = dataset.parts();
        let starts = prefix_sums(dataset.groups())?;
        let sources = parts.iter().enumerate().map(|(index, part)| {
            let starts = starts
                .get(part.groups.start..=part.groups.end)
                .filter(|starts| starts.first() < starts.last());
            let starts =
                starts.ok_or_else(|| Error::Setting(format!("the source '{}' has no rows", part.name)))?;
            let shuffle = Shuffle::new(settings.seed, index as u64, settings.window_groups);
            let shuffle = settings.shuffle.then_some(shuffle);
            Ok(SourceOrder::new(starts.to_vec(), settings.lanes as u64, shuffle))
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let weights: Vec<f64> = parts.iter().map(|part| part.weight).collect();
        let mixture = if parts.len() > 1 { Some(Mixture::new(&weights)?) } else { None };
        let names = parts.into_iter().map(|part| part.name).collect();
        Ok(Self { names, len: sources.iter().map(SourceOrder::len).sum(), sources, mixture })
    }

    /// Rows of all sources: without a mixture, the positions of an epoch.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: an order has rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lane that serves a position; this needs no lookup.
    pub fn lane(&self, position: u64) -> u64 {
        let (source, sample) = self.sample(position);
        self.sources[source].lane(sample)
    }

    /// The sample at a position of the run.
    pub fn key(&self, position: u64) -> SampleKey {
        let (source, sample) = self.sample(position);
        let (epoch, row) = self.sources[source].row(sample);
        SampleKey { position, epoch, row }
    }

    /// The samples of a stretch of positions, such as a global batch with those of all ranks.
    pub fn keys(&self, positions: Range<u64>) -> impl Iterator<Item = SampleKey> + '_ {
        positions.map(|position| self.key(position))
    }

    /// How far every source has been read when the run stands at a position.
    pub fn progress(&self, position: u64) -> Vec<SourceProgress> {
        let sources = self.names.iter().zip(&self.sources).enumerate();
        sources
            .map(|(index, (name, source))| {
                let samples =
                    self.mixture.as_ref().map_or(position, |mixture| mixture.samples(index, position));
                SourceProgress { name: name.clone(), samples, epochs: samples as f64 / source.len() as f64 }
            })
            .collect()
    }

    /// The source at a position, and which of its samples is meant.
    fn sample(&self, position: u64) -> (usize, u64) {
        self.mixture.as_ref().map_or((0, position), |mixture| mixture.at(position))
    }
}

fn prefix_sums(counts: &[u64]) -> Result<Vec<u64>> {
    let mut sums = vec![0u64];
    let mut total = 0u64;
    for count in counts {
        total = total
            .checked_add(*count)
            .ok_or_else(|| Error::Setting("the data set has more than 2^64 rows".into()))?;
        sums.push(total);
    }
    if total == 0 {
        return Err(Error::Setting("the data set has no rows; a split needs at least one".into()));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests;
