//! Decoded row groups, shared by the data threads: bounded, least recently used first out, each decoded once at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::decode::Group;
use crate::error::Result;

/// A bounded map from group numbers to decoded groups.
#[derive(Debug)]
pub(super) struct GroupCache {
    max_groups: usize,
    max_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<usize, Slot>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
enum Slot {
    /// A thread decodes it.
    Decoding,
    /// It is there.
    Ready { group: Arc<Group>, last_used: u64 },
}

impl GroupCache {
    /// Keeps at most so many groups and bytes, but always the newest group.
    pub fn new(max_groups: usize, max_bytes: usize) -> Self {
        Self { max_groups: max_groups.max(1), max_bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    /// The group, decoded by `decode` unless it is there; threads that ask meanwhile wait for it. After an error the
    /// next one who asks tries again.
    pub fn get(&self, index: usize, decode: impl FnOnce() -> Result<Group>) -> Result<Arc<Group>> {
        let mut state = self.lock();
        loop {
            match state.touch(index) {
                Some(Some(group)) => return Ok(group),
                Some(None) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.slots.insert(index, Slot::Decoding);
        drop(state);

        let claim = Claim { cache: self, index };
        let group = Arc::new(decode()?);
        claim.fill(group.clone());
        Ok(group)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// `None`: not there; `Some(None)`: being decoded.
    fn touch(&mut self, index: usize) -> Option<Option<Arc<Group>>> {
        self.clock += 1;
        match self.slots.get_mut(&index)? {
            Slot::Decoding => Some(None),
            Slot::Ready { group, last_used } => {
                *last_used = self.clock;
                Some(Some(group.clone()))
            }
        }
    }

    fn evict(&mut self, max_groups: usize, max_bytes: usize) {
        while self.slots.len() > max_groups || self.bytes > max_bytes {
            let oldest = self.slots.iter().filter_map(|(index, slot)| match slot {
                Slot::Ready { last_used, .. } if *last_used < self.clock => Some((*last_used, *index)),
                _ => None,
            });
            let Some((_, index)) = oldest.min() else { return };
            if let Some(Slot::Ready { group, .. }) = self.slots.remove(&index) {
                self.bytes -= group.bytes();
            }
        }
    }
}

/// The right to decode a group; given up by leaving (an error), so that no one waits for ever.
struct Claim<'a> {
    cache: &'a GroupCache,
    index: usize,
}

impl Claim<'_> {
    fn fill(&self, group: Arc<Group>) {
        let mut state = self.cache.lock();
        state.clock += 1;
        state.bytes += group.bytes();
        let last_used = state.clock;
        state.slots.insert(self.index, Slot::Ready { group, last_used });
        state.evict(self.cache.max_groups, self.cache.max_bytes);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        if let Some(Slot::Decoding) = state.slots.get(&self.index) {
            state.slots.remove(&self.index);
        }
        drop(state);
        self.cache.changed.notify_all();
    }
}
