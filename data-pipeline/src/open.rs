//! From section `data` to tokenizers and data sets.

use std::{path::Path, sync::Arc};

use crate::{
    config::{DataConfig, Location, Task},
    dataset::Dataset,
    error::{Error, Result},
    parquet::{Columns, ParquetDataset, ParquetOptions},
    source::Sources,
    star::StarDataset,
    tokenizer::Tokenizer,
};

/// A part of the data. The numbers key the generated graphs and must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train = 0,
    /// For validation during training.
    Validation = 1,
    /// For the final test.
    Test = 2,
}

impl Split {
    /// All splits.
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

    /// The name in configuration keys and file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

impl DataConfig {
    /// Checks what can be checked without opening a file.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first setting that makes no sense.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("window_groups", self.window_groups),
            ("canonical_lanes", self.canonical_lanes),
            ("threads", self.threads),
            ("prefetch_steps", self.prefetch_steps),
            ("memory_mib", self.memory_mib),
        ] {
            if value == 0 {
                return Err(Error::Setting(format!("data.{name} = 0 makes no sense; use at least 1")));
            }
        }
        if self.max_tokens == Some(0) {
            return Err(Error::Setting(
                "data.max_tokens = 0 leaves no tokens; use at least 1 or leave it out".into(),
            ));
        }
        self.store.validate()?;
        if self.cache_dir.is_some() && self.cache_mib == 0 {
            return Err(Error::Setting("data.cache_mib = 0 keeps nothing; leave data.cache_dir out".into()));
        }
        match self.task {
            Task::Star => self.star.validate(),
            Task::Text if self.tokenizer.is_none() => Err(no_tokenizer()),
            Task::Text => Ok(()),
        }
    }

    /// The tokenizer: node numbers for star graphs, the configured file for texts.
    ///
    /// # Errors
    /// When the file is not set, missing or unusable.
    pub fn open_tokenizer(&self) -> Result<Tokenizer> {
        match (self.task, &self.tokenizer) {
            (Task::Star, _) => Ok(Tokenizer::numbers(self.star.num_nodes)),
            (Task::Text, Some(path)) => Tokenizer::open(path, &self.special_tokens),
            (Task::Text, None) => Err(no_tokenizer()),
        }
    }

    /// Where the rows of a split lie, if they are not generated.
    pub fn location(&self, split: Split) -> Option<&Location> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Validation => self.validation.as_ref(),
            Split::Test => self.test.as_ref(),
        }
    }

    /// Access to files wherever they lie, as the settings say.
    pub fn sources(&self) -> Sources {
        let sources = Sources::new(self.store.clone());
        match &self.cache_dir {
            Some(folder) => sources.with_cache(folder, self.cache_mib.saturating_mul(1 << 20)),
            None => sources,
        }
    }

    /// Opens a split; star graphs without a location are generated from `seed`.
    ///
    /// # Errors
    /// When the location is not set (texts), matches nothing, cannot be reached, or its files are damaged or of another
    /// kind.
    pub fn open_split(
        &self,
        split: Split,
        tokenizer: &Arc<Tokenizer>,
        seed: u64,
    ) -> Result<Arc<dyn Dataset>> {
        self.open_split_with(split, tokenizer, seed, None)
    }

    /// The same with a file that keeps footers from one start to the next (see [`ParquetDataset::open_from`]).
    ///
    /// # Errors
    /// As [`DataConfig::open_split`].
    pub fn open_split_with(
        &self,
        split: Split,
        tokenizer: &Arc<Tokenizer>,
        seed: u64,
        index: Option<&Path>,
    ) -> Result<Arc<dyn Dataset>> {
        let columns = match self.task {
            Task::Text => Columns::Language,
            Task::Star => Columns::PromptAndTarget,
        };
        match (self.task, self.location(split)) {
            (_, Some(location)) => {
                let options = ParquetOptions {
                    columns,
                    detokenizer: self.detokenizer,
                    max_tokens: self.max_tokens,
                    memory: self.memory_mib.saturating_mul(1 << 20),
                };
                let sources = self.sources();
                Ok(Arc::new(ParquetDataset::open_from(&sources, location, index, tokenizer, options)?))
            }
            (Task::Star, None) => Ok(Arc::new(StarDataset::new(&self.star, split, seed)?)),
            (Task::Text, None) => Err(Error::Setting(format!(
                "data.{} is not set; give a Parquet file, a directory, a glob or a URL",
                split.name()
            ))),
        }
    }
}

fn no_tokenizer() -> Error {
    Error::Setting("data.tokenizer is not set; give the path of a tokenizer.json".into())
}
