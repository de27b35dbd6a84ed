//! From a configuration to the objects it names: tokenizer, splits, collator, model.

use std::sync::Arc;

use data_pipeline::{Collator, Dataset, KeyedDrops, Split, Task, Tokenizer};
use ilm_model::{ModelShape, StoppingModel};

use crate::config::Experiment;

/// What every job needs of an experiment before anything is computed.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
}

impl Assembly {
    /// Opens the tokenizer.
    ///
    /// # Errors
    /// If there is none where the configuration says.
    pub fn open(config: &Experiment) -> Result<Self, data_pipeline::Error> {
        Ok(Self { tokenizer: Arc::new(config.data.open_tokenizer()?) })
    }

    /// Opens a split.
    ///
    /// # Errors
    /// If its files are missing or damaged.
    pub fn open_split(
        &self,
        config: &Experiment,
        split: Split,
    ) -> Result<Arc<dyn Dataset>, data_pipeline::Error> {
        config.data.open_split(split, &self.tokenizer, config.seed)
    }

    /// Whether the configuration has such a split at all: generated graphs always do, files must be named.
    pub fn has_split(config: &Experiment, split: Split) -> bool {
        config.data.task == Task::Star || config.data.location(split).is_some()
    }

    /// Makes batches of examples, with drops that depend on the run's seed, the epoch and the row alone.
    ///
    /// # Errors
    /// If the block sizes leave no room.
    pub fn collator(&self, config: &Experiment) -> Result<Collator, data_pipeline::Error> {
        let special = self.tokenizer.special();
        let drops = Arc::new(KeyedDrops::new(config.seed));
        match config.data.task {
            Task::Text => Collator::language(config.block_size, special, drops),
            Task::Star => Collator::seq2seq(config.input_block_size, config.block_size, special, drops),
        }
    }

    /// A model with the initial values of the run's seed.
    ///
    /// # Errors
    /// If the settings fit no model, or memory is short.
    pub fn build_model(&self, config: &Experiment) -> Result<StoppingModel, ilm_model::Error> {
        let shape = ModelShape {
            config: config.model.clone(),
            num_embeddings: self.tokenizer.vocab_size() as i64,
            padding_idx: i64::from(self.tokenizer.special().pad),
            max_length: config.max_length(),
            precision: config.trainer.precision,
        };
        StoppingModel::new(shape, config.seed)
    }
}
