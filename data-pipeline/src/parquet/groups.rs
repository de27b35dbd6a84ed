//! The row groups of a set of files: found by number, fetched and decoded when asked for, or ahead on own threads.

use std::sync::{Arc, Once};

use super::{cache::GroupCache, decode::Group, index::FileIndex};
use crate::error::{Error, Result};

/// Threads that read ahead from local disks; for stores it is the number of requests in flight.
const LOCAL_THREADS: usize = 2;

/// Where a group of rows lies; groups without rows are left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupAddress {
    pub file: usize,
    pub row_group: usize,
    pub first_row_in_file: u64,
    pub rows: u64,
}

/// The row groups of files, in the order of the files.
#[derive(Debug)]
pub(super) struct RowGroups {
    shared: Arc<Shared>,
    threads: usize,
    started: Once,
}

#[derive(Debug)]
struct Shared {
    files: Vec<FileIndex>,
    groups: Vec<GroupAddress>,
    vocab_size: usize,
    cache: GroupCache<Group>,
}

impl RowGroups {
    /// Keeps up to `memory` bytes of decoded groups; reads ahead from stores with `concurrency` threads.
    pub fn new(
        files: Vec<FileIndex>,
        groups: Vec<GroupAddress>,
        vocab_size: usize,
        memory: usize,
        concurrency: usize,
    ) -> Self {
        let remote = files.iter().any(|file| file.source.is_remote());
        let threads = if remote { concurrency } else { LOCAL_THREADS };
        let cache = GroupCache::new(memory, Group::bytes);
        let shared = Arc::new(Shared { files, groups, vocab_size, cache });
        Self { shared, threads, started: Once::new() }
    }

    /// All files.
    pub fn files(&self) -> &[FileIndex] {
        &self.shared.files
    }

    /// A group's address and file.
    pub fn find(&self, index: usize) -> (GroupAddress, &FileIndex) {
        let group = self.shared.groups[index];
        (group, &self.shared.files[group.file])
    }

    /// A decoded group.
    pub fn get(&self, index: usize) -> Result<Arc<Group>> {
        self.shared.cache.get(index, || self.shared.load(index))
    }

    /// Starts to fetch and decode groups that are asked for soon, in this order.
    pub fn read_ahead(&self, groups: impl Iterator<Item = usize>) {
        self.started.call_once(|| {
            for number in 0..self.threads {
                let shared = self.shared.clone();
                let work = move || shared.cache.decode_ahead(|index| shared.load(index));
                // Without them rows are read when they are asked for.
                if let Err(error) =
                    std::thread::Builder::new().name(format!("ilm-fetch-{number}")).spawn(work)
                {
                    tracing::warn!("cannot start a thread that reads ahead: {error}");
                    return;
                }
            }
        });
        let memory = |index: usize| {
            let (group, file) = self.find(index);
            (index, usize::try_from(file.decoded_bytes(group.row_group)).unwrap_or(usize::MAX / 2))
        };
        self.shared.cache.announce(groups.map(memory));
    }
}

impl Drop for RowGroups {
    /// The threads end after the group they are at; nobody waits for a slow store.
    fn drop(&mut self) {
        self.shared.cache.close();
    }
}

impl Shared {
    fn load(&self, index: usize) -> Result<Group> {
        let group = self.groups[index];
        let file = &self.files[group.file];
        let chunks = file.fetch(group.row_group)?;
        Group::decode(file, group.row_group, chunks, self.vocab_size).map_err(|reason| Error::RowGroup {
            path: file.path.clone(),
            row_group: group.row_group,
            first_row: group.first_row_in_file,
            last_row: group.first_row_in_file + group.rows - 1,
            reason,
        })
    }
}
