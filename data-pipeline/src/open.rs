//! From section `data` to tokenizers and data sets.

use std::{ops::Range, path::Path, sync::Arc};

use crate::{
    concat::Concat,
    config::{DataConfig, Location, MixtureEntry, Task},
    dataset::Dataset,
    error::{Error, Result},
    order::{GlobalOrder, OrderSettings},
    parquet::{Columns, ParquetDataset, ParquetOptions},
    schedule::{Schedule, parse_steps},
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
        for (name, value) in [("epochs", self.epochs), ("max_samples", self.max_samples)] {
            if value == Some(0) {
                return Err(Error::Setting(format!(
                    "data.{name} = 0 ends before the first step; use at least 1"
                )));
            }
        }
        self.validate_mixture()?;
        self.skipped_steps()?;
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

    fn validate_mixture(&self) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Setting(reason.into()));
        match (self.mixture.is_empty(), &self.train, self.epochs) {
            (false, Some(_), _) => refuse("data.train and data.mixture are both set; leave one of them out"),
            (false, None, Some(_)) => refuse(
                "data.epochs has no meaning for data.mixture, whose sources have epochs of their own; use data.max_samples",
            ),
            _ => Ok(()),
        }
    }

    fn skipped_steps(&self) -> Result<Vec<Range<u64>>> {
        self.skip_steps.iter().map(|steps| parse_steps(steps)).collect()
    }

    /// The order of the training rows, which [`open_split`](Self::open_split) opened.
    ///
    /// # Errors
    /// [`Error::Setting`] when a setting makes no sense for these rows.
    pub fn order(&self, dataset: &dyn Dataset, seed: u64) -> Result<GlobalOrder> {
        let &Self { shuffle, window_groups, canonical_lanes: lanes, .. } = self;
        GlobalOrder::new(dataset, OrderSettings { seed, shuffle, window_groups, lanes })
    }

    /// The steps of a run over `rows` training rows, with `global_batch` samples each.
    ///
    /// # Errors
    /// [`Error::Plan`] when `global_batch` is zero, [`Error::Setting`] when `skip_steps` cannot be read.
    pub fn schedule(&self, global_batch: usize, rows: u64) -> Result<Schedule> {
        let mut schedule = Schedule::new(global_batch)?.skip(self.skipped_steps()?);
        if let Some(epochs) = self.epochs {
            schedule = schedule.end_at(epochs.saturating_mul(rows));
        }
        if let Some(samples) = self.max_samples {
            schedule = schedule.end_after(samples);
        }
        Ok(schedule)
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
        if split == Split::Train && !self.mixture.is_empty() {
            let source = |entry: &MixtureEntry| {
                // Footers of the sources lie in files of their own.
                let index = index.map(|path| path.with_extension(format!("{}.idx", entry.name)));
                let dataset = self.open_files(&entry.path, tokenizer, index.as_deref())?;
                Ok((entry.name.clone(), entry.weight, dataset))
            };
            return Ok(Arc::new(Concat::new(self.mixture.iter().map(source).collect::<Result<_>>()?)?));
        }
        match (self.task, self.location(split)) {
            (_, Some(location)) => self.open_files(location, tokenizer, index),
            (Task::Star, None) => Ok(Arc::new(StarDataset::new(&self.star, split, seed)?)),
            (Task::Text, None) => Err(Error::Setting(format!(
                "data.{} is not set; give a Parquet file, a directory, a glob or a URL",
                split.name()
            ))),
        }
    }

    fn open_files(
        &self,
        location: &Location,
        tokenizer: &Arc<Tokenizer>,
        index: Option<&Path>,
    ) -> Result<Arc<dyn Dataset>> {
        let columns = match self.task {
            Task::Text => Columns::Language,
            Task::Star => Columns::PromptAndTarget,
        };
        let options = ParquetOptions {
            columns,
            detokenizer: self.detokenizer,
            max_tokens: self.max_tokens,
            memory: self.memory_mib.saturating_mul(1 << 20),
            on_bad_row: self.on_bad_row,
            on_bad_file: self.on_bad_file,
        };
        Ok(Arc::new(ParquetDataset::open_from(&self.sources(), location, index, tokenizer, options)?))
    }
}

fn no_tokenizer() -> Error {
    Error::Setting("data.tokenizer is not set; give the path of a tokenizer.json".into())
}
