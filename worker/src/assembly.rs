//! From a configuration to the objects it names: tokenizer, splits, collator, model.

use std::path::Path;
use std::sync::Arc;

use data_pipeline::{Collator, Dataset, KeyedDrops, Split, Task, Tokenizer};
use ilm_model::{Model, ModelShape, Predictor, PredictorConfig, SpecialIds};

use tch::Device;

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

    /// The same with a file that keeps the footers of the split's files from one start to the next.
    ///
    /// # Errors
    /// As [`open_split`](Self::open_split).
    pub fn open_split_with(
        &self,
        config: &Experiment,
        split: Split,
        index: Option<&Path>,
    ) -> Result<Arc<dyn Dataset>, data_pipeline::Error> {
        config.data.open_split_with(split, &self.tokenizer, config.seed, index)
    }

    /// Whether the configuration has such a split at all: generated graphs always do, files must be named.
    pub fn has_split(config: &Experiment, split: Split) -> bool {
        let data = &config.data;
        let is_mixed = split == Split::Train && !data.mixture.is_empty();
        data.task == Task::Star || is_mixed || data.location(split).is_some()
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

    /// What the configuration and the tokenizer make of the model.
    pub fn model_shape(&self, config: &Experiment) -> ModelShape {
        ModelShape {
            config: config.model.clone(),
            num_embeddings: self.tokenizer.vocab_size() as i64,
            padding_idx: i64::from(self.tokenizer.special().pad),
            max_length: config.max_length(),
            precision: config.trainer.precision,
            recompute: config.trainer.recompute,
        }
    }

    /// A model with the initial values of the run's seed, on a device.
    ///
    /// # Errors
    /// If the settings fit no model, or memory is short.
    pub fn build_model(&self, config: &Experiment, device: Device) -> Result<Model, ilm_model::Error> {
        Model::new_on(self.model_shape(config), config.seed, device)
    }

    /// The special tokens that prediction knows by role.
    pub fn special_ids(&self) -> SpecialIds {
        let special = self.tokenizer.special();
        let [cls, bos, pad, mask] = [special.cls, special.bos, special.pad, special.mask].map(i64::from);
        SpecialIds { cls, bos, pad, mask }
    }

    /// What generates texts as the configuration says.
    ///
    /// # Errors
    /// If a suppressed token is none of the tokenizer's, or the settings do not fit the model.
    pub fn predictor(&self, config: &Experiment) -> anyhow::Result<Predictor> {
        let suppressed = self.suppressed(&config.predictor)?;
        let shape = self.model_shape(config);
        Ok(Predictor::new(config.predictor.clone(), self.special_ids(), &suppressed, &shape)?)
    }

    /// The tokens that are never inserted: unless the settings name others, those that mark something rather than say something.
    /// UNK and SEP may be part of a text.
    fn suppressed(&self, predictor: &PredictorConfig) -> Result<Vec<i64>, data_pipeline::Error> {
        let special = self.tokenizer.special();
        let Some(names) = &predictor.tokens_to_suppress else {
            let marks = [special.mask, special.eos, special.pad, special.cls, special.bos];
            return Ok(marks.map(i64::from).to_vec());
        };
        let id = |name: &String| {
            self.tokenizer.token_to_id(name).map(i64::from).ok_or_else(|| {
                data_pipeline::Error::Setting(format!(
                    "predictor.tokens_to_suppress: '{name}' is not a token of this tokenizer"
                ))
            })
        };
        names.iter().map(id).collect()
    }
}
