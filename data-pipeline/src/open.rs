//! From section `data` to tokenizers and data sets.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use xxhash_rust::xxh3::xxh3_128;

use crate::{
    concat::Concat,
    config::{DataConfig, Location, MixtureEntry, StoreConfig, Task},
    dataset::Dataset,
    error::{Error, Result},
    order::{GlobalOrder, OrderSettings},
    parquet::{Columns, ParquetDataset, ParquetOptions, Reader},
    schedule::{Schedule, parse_steps},
    source::Sources,
    star::StarDataset,
    tokenizer::Tokenizer,
};

/// Threads beyond this many are a slip of the pen; so are steps, which take memory each.
const MOST_THREADS: usize = 1024;
const MOST_STEPS: usize = 1 << 16;

/// What a reader is made of: `store`, `cache_dir`, `cache_mib` and `memory_mib` of section `data`.
type ReaderSettings = (StoreConfig, Option<PathBuf>, u64, usize);

/// The readers of this process that data sets use.
static READERS: Mutex<Vec<(ReaderSettings, Weak<Reader>)>> = Mutex::new(Vec::new());

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
        for (name, value, most) in [
            ("threads", self.threads, MOST_THREADS),
            ("prefetch_steps", self.prefetch_steps, MOST_STEPS),
            ("read_ahead_steps", self.read_ahead_steps, MOST_STEPS),
        ] {
            if value > most {
                return Err(Error::Setting(format!("data.{name} = {value} is too much; use at most {most}")));
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

    /// The value of `skip_steps` that leaves out the data of these positions as well, with `global_batch` samples a step.
    pub fn skipping(&self, global_batch: usize, positions: Range<u64>) -> Vec<String> {
        let batch = global_batch.max(1) as u64;
        let new = positions.start / batch..positions.end.div_ceil(batch);
        let covers = |old: Range<u64>| new.start <= old.start && old.end <= new.end;
        let kept = self.skip_steps.iter().filter(|old| !parse_steps(old).is_ok_and(covers));
        kept.cloned().chain([format!("{}..{}", new.start, new.end)]).collect()
    }

    /// Why a rank decodes row groups again and again; none if those that are open at a time fit `memory_mib`.
    pub fn memory_warning(&self, dataset: &dyn Dataset, world_size: usize) -> Option<String> {
        let lanes = self.canonical_lanes.div_ceil(world_size.max(1));
        let window = lanes.saturating_mul(self.window_groups);
        let parts = dataset.parts().into_iter().map(|part| {
            let largest = part.groups.clone().map(|group| dataset.group_bytes(group)).max().unwrap_or(0);
            // In the order of the rows one is read after the other.
            let open = if self.shuffle { window.min(part.groups.len()) } else { 1 };
            (open, largest)
        });
        let (open, bytes) = parts.fold((0usize, 0usize), |(open, bytes), (more, largest)| {
            (open.saturating_add(more), bytes.saturating_add(more.saturating_mul(largest)))
        });
        let needed = bytes.div_ceil(1 << 20);
        (needed > self.memory_mib).then(|| {
            format!(
                "data.memory_mib = {} is less than the {needed} MiB that the {open} row groups may take which a rank has open at \
                 a time, so they are decoded again in every step; set data.memory_mib={needed}, or let `ilm-worker prepare` \
                 write small ones",
                self.memory_mib
            )
        })
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

    /// What reads files wherever they lie, as the settings say. A rank is a process, so all that are in use at a time and have
    /// the same settings are one: its splits and sources share clients, requests in flight and memory.
    fn reader(&self) -> Result<Arc<Reader>> {
        let Self { store, cache_dir, cache_mib, memory_mib, .. } = self;
        let settings: ReaderSettings = (store.clone(), cache_dir.clone(), *cache_mib, *memory_mib);
        let mut readers = READERS.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|(_, reader)| reader.strong_count() > 0);
        let known = readers.iter().find(|(known, _)| *known == settings);
        if let Some(reader) = known.and_then(|(_, reader)| reader.upgrade()) {
            return Ok(reader);
        }
        let sources = Sources::new(store.clone());
        if store.endpoint.is_some() {
            // Of one endpoint for two kinds of stores neither is asked, whichever split or source comes first.
            self.locations().try_for_each(|location| sources.connect(location))?;
        }
        let sources = match cache_dir {
            Some(folder) => sources.with_cache(folder, cache_mib.saturating_mul(1 << 20)),
            None => sources,
        };
        let reader = Arc::new(Reader::new(sources, memory_mib.saturating_mul(1 << 20)));
        readers.push((settings, Arc::downgrade(&reader)));
        Ok(reader)
    }

    /// All places that are named.
    fn locations(&self) -> impl Iterator<Item = &Location> {
        let splits = Split::ALL.into_iter().filter_map(|split| self.location(split));
        splits.chain(self.mixture.iter().map(|entry| &entry.path))
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
                let index = index.map(|path| index_of(path, &entry.name));
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
            on_bad_row: self.on_bad_row,
            on_bad_file: self.on_bad_file,
        };
        Ok(Arc::new(ParquetDataset::open_from(&self.reader()?, location, index, tokenizer, options)?))
    }
}

/// The file that keeps the footers of a source, beside the one of a set that is not mixed. Names that are no part of a file's name
/// are hashed.
fn index_of(path: &Path, source: &str) -> PathBuf {
    const LONGEST: usize = 100;
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if source.len() <= LONGEST && source.chars().all(plain) {
        path.with_extension(format!("{source}.idx"))
    } else {
        path.with_extension(format!("{:032x}.idx", xxh3_128(source.as_bytes())))
    }
}

fn no_tokenizer() -> Error {
    Error::Setting("data.tokenizer is not set; give the path of a tokenizer.json".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_skipped_as_well_is_named_by_its_place_in_the_data() {
        let config = DataConfig { skip_steps: vec!["1..3".into()], ..DataConfig::default() };
        let served = |config: &DataConfig| -> Vec<Range<u64>> {
            config.schedule(10, 1000).unwrap().steps(0).take(4).collect()
        };
        let before = served(&config);
        // The second and the third step of the run are the fourth and the fifth of the data.
        let skip_steps = config.skipping(10, before[1].start..before[2].end);
        assert_eq!(skip_steps, ["1..3", "3..5"]);
        let after = served(&DataConfig { skip_steps, ..config.clone() });
        assert_eq!(after[..2], [before[0].clone(), before[3].clone()]);
        // What is skipped already within the new stretch need not be named, and a step is left out as a whole.
        assert_eq!(config.skipping(10, before[0].start..before[1].end), ["0..4"]);
        assert_eq!(config.skipping(10, 15..21), ["1..3"]);
        assert_eq!(config.skipping(10, 25..31), ["1..3", "2..4"]);
    }

    #[test]
    fn a_rank_reads_all_of_its_splits_with_one_reader() {
        let config = DataConfig::default();
        let reader = config.reader().unwrap();
        let same = DataConfig { threads: 7, ..config.clone() };
        assert!(Arc::ptr_eq(&reader, &same.reader().unwrap()));
        let other = DataConfig { memory_mib: 7, ..config.clone() };
        assert!(!Arc::ptr_eq(&reader, &other.reader().unwrap()));
        let gone = Arc::downgrade(&reader);
        drop(reader);
        assert!(gone.upgrade().is_none(), "nobody uses it");
        assert!(READERS.lock().unwrap().len() <= 2);
    }

    /// The hub's token would go to the store of buckets.
    #[test]
    fn an_endpoint_is_not_asked_if_places_of_another_split_make_it_two_kinds_of_stores() {
        let config = DataConfig {
            train: Some("hf://datasets/o/n/x.parquet".into()),
            validation: Some("s3://bucket/x.parquet".into()),
            store: StoreConfig { endpoint: Some("http://127.0.0.1:1".into()), ..StoreConfig::default() },
            ..DataConfig::default()
        };
        let tokenizer = Arc::new(Tokenizer::Bytes);
        let refused = config.open_split(Split::Train, &tokenizer, 0).err().unwrap();
        assert!(matches!(refused, Error::Setting(_)), "{refused}");
        assert!(
            refused.to_string().contains("cannot stand for the hub and for a store of buckets"),
            "{refused}"
        );
    }
}
