//! Decoded row groups of all data sets of a rank: one bound, one cache and the threads that fill it ahead.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{cache::GroupCache, decode::Group, groups::GroupSet};
use crate::{
    error::{Error, Result},
    source::Sources,
};

/// A row group may take so much memory when decoded, or all that is allowed if that is more: a small file can ask for any
/// amount, since it may say a long text once and mean it a million times.
const MAX_GROUP_BYTES: usize = 4 << 30;

/// How a rank reads files: clients of stores, and memory for decoded row groups. All of its data sets share one.
#[derive(Debug)]
pub struct Reader {
    pub(super) sources: Sources,
    pub(super) memory: Arc<GroupMemory>,
}

impl Reader {
    /// Keeps up to `memory` bytes of decoded row groups, those that are read ahead among them.
    pub fn new(sources: Sources, memory: usize) -> Self {
        Self { sources, memory: Arc::new(GroupMemory::new(memory)) }
    }
}

/// The usual way to reach files, and a gibibyte.
impl Default for Reader {
    fn default() -> Self {
        Self::new(Sources::default(), 1 << 30)
    }
}

/// Every group of every set has a number of its own here.
#[derive(Debug)]
pub(super) struct GroupMemory {
    shared: Arc<Shared>,
    max_bytes: usize,
    /// Threads that read ahead.
    threads: Mutex<usize>,
}

#[derive(Debug)]
struct Shared {
    cache: GroupCache<Group>,
    sets: Mutex<Sets>,
}

/// The sets by the number of their first group.
#[derive(Debug, Default)]
struct Sets {
    by_first: BTreeMap<usize, Weak<GroupSet>>,
    next: usize,
}

impl GroupMemory {
    fn new(max_bytes: usize) -> Self {
        let shared = Shared { cache: GroupCache::new(max_bytes, Group::bytes), sets: Mutex::default() };
        Self { shared: Arc::new(shared), max_bytes, threads: Mutex::default() }
    }

    pub fn cache(&self) -> &GroupCache<Group> {
        &self.shared.cache
    }

    /// Bytes of the largest group that is believed.
    pub fn max_group_bytes(&self) -> usize {
        self.max_bytes.max(MAX_GROUP_BYTES)
    }

    /// Gives the groups of a set their numbers, and returns the first.
    pub fn enter(&self, set: &Arc<GroupSet>) -> usize {
        let mut sets = self.shared.sets();
        let first = sets.next;
        sets.next += set.len();
        sets.by_first.insert(first, Arc::downgrade(set));
        first
    }

    /// Gives back what a set takes whose first group has this number.
    pub fn forget(&self, first: usize, groups: usize) {
        self.shared.sets().by_first.remove(&first);
        self.shared.cache.forget(first..first + groups);
    }

    /// Sees to it that so many threads decode what is announced.
    pub fn start_threads(&self, wanted: usize) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while *threads < wanted {
            let shared = self.shared.clone();
            let work = move || shared.cache.decode_ahead(|number| shared.load(number));
            let name = format!("ilm-fetch-{}", *threads);
            // Without them rows are read when they are asked for, so nobody tries again.
            *threads = match std::thread::Builder::new().name(name).spawn(work) {
                Ok(_) => *threads + 1,
                Err(error) => {
                    tracing::warn!("cannot start a thread that reads ahead: {error}");
                    usize::MAX
                }
            };
        }
    }
}

impl Drop for GroupMemory {
    /// The threads end after the group they are at; nobody waits for a slow store.
    fn drop(&mut self) {
        self.shared.cache.close();
    }
}

impl Shared {
    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, number: usize) -> Result<Group> {
        let found =
            self.sets().by_first.range(..=number).next_back().map(|(&first, set)| (first, set.upgrade()));
        match found {
            Some((first, Some(set))) if number - first < set.len() => set.load(number - first),
            // The set was dropped after its group was announced.
            _ => Err(Error::LoaderStopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Detokenizer, OnBad},
        dataset::Dataset,
        parquet::{Columns, ParquetDataset, ParquetOptions},
        tokenizer::Tokenizer,
    };

    fn open(reader: &Arc<Reader>, set: &str) -> ParquetDataset {
        let options = ParquetOptions {
            columns: Columns::Language,
            detokenizer: Detokenizer::None,
            max_tokens: None,
            on_bad_row: OnBad::Error,
            on_bad_file: OnBad::Error,
        };
        let location = test_support::data_dir().join(set).to_str().unwrap().into();
        let tokenizer = Arc::new(Tokenizer::numbers(60_000));
        ParquetDataset::open_from(reader, &location, None, &tokenizer, options).unwrap()
    }

    fn both(memory: usize) -> (Arc<Reader>, [ParquetDataset; 2]) {
        let reader = Arc::new(Reader::new(Sources::default(), memory));
        let sets = ["train-00004-of-00008", "validation-00001-of-00002"];
        let sets = sets.map(|name| open(&reader, &format!("owt-gpt2-1024-mini/{name}.parquet")));
        (reader, sets)
    }

    #[test]
    fn sets_of_a_rank_share_one_bound() {
        let (unbounded, sets) = both(usize::MAX);
        let rows = |sets: &[ParquetDataset; 2]| {
            let rows = |set: &ParquetDataset| {
                let row = |row| set.example(row).unwrap().unwrap();
                (0..set.len()).step_by(7).map(row).collect::<Vec<_>>()
            };
            sets.each_ref().map(rows)
        };
        let wanted = rows(&sets);
        let all = unbounded.memory.cache().bytes();
        let largest = (0..sets[0].groups().len()).map(|group| sets[0].group_bytes(group)).max().unwrap();
        assert!(all > 2 * largest, "{all} {largest}");

        let (reader, sets) = both(all / 2);
        assert_eq!(rows(&sets), wanted, "no set gets the group of another");
        assert!(reader.memory.cache().bytes() <= all / 2);
        let [first, second] = sets;
        drop(first);
        let left = reader.memory.cache().bytes();
        assert!(left > 0 && left < all / 2, "{left}");
        drop(second);
        assert_eq!(reader.memory.cache().bytes(), 0);
    }

    #[test]
    fn the_same_threads_read_ahead_for_all_sets() {
        let (reader, sets) = both(usize::MAX);
        for set in &sets {
            set.read_ahead(&[0]);
        }
        let expected: usize = sets.iter().map(|set| set.group_bytes(0)).sum();
        // What footers tell of ids is what they take, but for the ends of rows.
        while reader.memory.cache().bytes() < expected {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(*reader.memory.threads.lock().unwrap(), 2);
    }
}
