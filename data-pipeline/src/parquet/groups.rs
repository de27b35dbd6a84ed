//! The row groups of a set of files: found by number, fetched and decoded when asked for, or ahead by the threads of all sets.

use std::sync::Arc;

use super::{decode::Group, index::FileIndex, memory::GroupMemory};
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

/// The row groups of files, in the order of the files, some of them decoded in memory that other sets share.
#[derive(Debug)]
pub(super) struct RowGroups {
    set: Arc<GroupSet>,
    memory: Arc<GroupMemory>,
    /// What the memory calls the first group.
    first: usize,
    threads: usize,
}

/// What decoding a group takes.
#[derive(Debug)]
pub(super) struct GroupSet {
    files: Vec<FileIndex>,
    groups: Vec<GroupAddress>,
    vocab_size: usize,
    /// Bytes of the largest group that is believed.
    max_bytes: usize,
}

impl RowGroups {
    /// Reads ahead from stores with `concurrency` threads.
    pub fn new(
        memory: &Arc<GroupMemory>,
        files: Vec<FileIndex>,
        groups: Vec<GroupAddress>,
        vocab_size: usize,
        concurrency: usize,
    ) -> Self {
        let remote = files.iter().any(|file| file.source.is_remote());
        let threads = if remote { concurrency } else { LOCAL_THREADS };
        let set = Arc::new(GroupSet { files, groups, vocab_size, max_bytes: memory.max_group_bytes() });
        Self { first: memory.enter(&set), set, memory: memory.clone(), threads }
    }

    /// All files.
    pub fn files(&self) -> &[FileIndex] {
        &self.set.files
    }

    /// A group's address and file.
    pub fn find(&self, index: usize) -> (GroupAddress, &FileIndex) {
        let group = self.set.groups[index];
        (group, &self.set.files[group.file])
    }

    /// A decoded group.
    pub fn get(&self, index: usize) -> Result<Arc<Group>> {
        self.memory.cache().get(self.first + index, || self.set.load(index))
    }

    /// Starts to fetch and decode groups that are asked for soon, in this order.
    pub fn read_ahead(&self, groups: impl Iterator<Item = usize>) {
        self.memory.start_threads(self.threads);
        self.memory.cache().announce(groups.map(|index| (self.first + index, self.decoded_bytes(index))));
    }

    /// Memory that a group takes, as far as the footer tells.
    pub fn decoded_bytes(&self, index: usize) -> usize {
        let (group, file) = self.find(index);
        usize::try_from(file.decoded_bytes(group.row_group)).unwrap_or(usize::MAX / 2)
    }
}

impl Drop for RowGroups {
    fn drop(&mut self) {
        self.memory.forget(self.first, self.set.len());
    }
}

impl GroupSet {
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Fetches and decodes a group.
    pub fn load(&self, index: usize) -> Result<Group> {
        let group = self.groups[index];
        let file = &self.files[group.file];
        let chunks = file.fetch(group.row_group)?;
        let decoded = Group::decode(file, group.row_group, chunks, self.vocab_size, self.max_bytes);
        decoded.map_err(|reason| Error::RowGroup {
            path: file.path.clone(),
            row_group: group.row_group,
            first_row: group.first_row_in_file,
            last_row: group.first_row_in_file + group.rows - 1,
            reason,
        })
    }
}
