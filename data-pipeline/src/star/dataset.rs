//! Generated star graphs: a row is a pure function of (seed, split, row), and no graph is in two splits.

use xxhash_rust::xxh3::xxh3_128;

use super::generate::StarGraph;
use crate::{
    config::StarConfig,
    dataset::{Dataset, Example},
    error::{Error, Result},
    open::Split,
    random::{Purpose, keyed_rng},
};

/// Classes of graphs by their hash: 0 is validation, 1 to 3 are test, the rest is train.
const CLASSES: u64 = 16;
/// Draws before a split is given up as too small. With more than a few possible graphs a class is missed this often
/// with a chance of (15/16)^4096 < 1e-114.
const ATTEMPTS: usize = 4096;

/// A split of generated star graphs.
#[derive(Debug)]
pub struct StarDataset {
    config: StarConfig,
    split: Split,
    seed: u64,
    rows: [u64; 1],
    fingerprint: String,
}

impl StarDataset {
    /// The split of the sets that `seed` stands for.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that allow no graph.
    pub fn new(config: &StarConfig, split: Split, seed: u64) -> Result<Self> {
        config.validate()?;
        let rows = match split {
            Split::Train => config.train_size,
            Split::Validation => config.validation_size,
            Split::Test => config.test_size,
        };
        let identity = format!("star 1 {config:?} {} {seed}", split.name());
        let fingerprint = format!("{:032x}", xxh3_128(identity.as_bytes()));
        let dataset = Self { config: config.clone(), split, seed, rows: [rows], fingerprint };
        dataset.graph(0)?;
        Ok(dataset)
    }

    /// The graph of a row: the first one of the row's stream that belongs to the split.
    ///
    /// # Errors
    /// [`Error::RowOutOfRange`], and [`Error::Setting`] when the settings allow so few graphs that none is found.
    pub fn graph(&self, row: u64) -> Result<StarGraph> {
        if row >= self.len() {
            return Err(Error::RowOutOfRange { row, len: self.len() });
        }
        let mut rng = keyed_rng(self.seed, Purpose::Star, self.split as u64, row);
        (0..ATTEMPTS)
            .map(|_| self.config.draw(&mut rng))
            .find(|graph| split_of(graph) == self.split)
            .ok_or_else(|| {
                Error::Setting(format!(
                    "data.star allows too few different graphs to fill the {} split; raise num_nodes, degree or the path lengths",
                    self.split.name()
                ))
            })
    }
}

fn split_of(graph: &StarGraph) -> Split {
    match graph.canonical_hash() % CLASSES {
        0 => Split::Validation,
        1..=3 => Split::Test,
        _ => Split::Train,
    }
}

impl Dataset for StarDataset {
    fn len(&self) -> u64 {
        self.rows[0]
    }

    fn groups(&self) -> &[u64] {
        &self.rows
    }

    fn example(&self, row: u64) -> Result<Option<Example>> {
        Ok(Some(self.graph(row)?.example()))
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
