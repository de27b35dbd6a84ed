//! Decoded row groups, shared by the data threads: bounded in bytes, least recently used first out, decoded once at a time.
//!
//! Groups may be announced; threads take them in that order and decode them before they are asked for.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::error::Result;

/// Announced groups that wait; older ones are forgotten, since they are decoded when asked for anyway.
const MOST_ANNOUNCED: usize = 4096;

/// Uses of other groups after which nobody is expected to ask for a group that was decoded ahead.
const LONGEST_WAIT: u64 = 1 << 16;

/// A bounded map from group numbers to decoded groups `G`.
#[derive(Debug)]
pub(super) struct GroupCache<G> {
    /// Memory a group takes.
    bytes_of: fn(&G) -> usize,
    max_bytes: usize,
    state: Mutex<State<G>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<G> {
    slots: HashMap<usize, Slot<G>>,
    bytes: usize,
    clock: u64,
    /// Groups to decode ahead, with the memory they may take.
    announced: VecDeque<(usize, usize)>,
    /// Memory of groups that are decoded ahead, or being so, and have not been asked for.
    ahead: usize,
    closed: bool,
}

#[derive(Debug)]
enum Slot<G> {
    /// A thread decodes it; so much of `ahead` is its.
    Decoding { ahead: usize },
    /// It is there; so much of `ahead` is its.
    Ready { group: Arc<G>, bytes: usize, last_used: u64, ahead: usize },
}

impl<G> GroupCache<G> {
    /// Keeps at most so many bytes, but always the newest group.
    pub fn new(max_bytes: usize, bytes_of: fn(&G) -> usize) -> Self {
        let state = State {
            slots: HashMap::new(),
            bytes: 0,
            clock: 0,
            announced: VecDeque::new(),
            ahead: 0,
            closed: false,
        };
        Self { bytes_of, max_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The group, decoded by `decode` unless it is there; threads that ask meanwhile wait for it. After an error the
    /// next one who asks tries again.
    pub fn get(&self, index: usize, decode: impl FnOnce() -> Result<G>) -> Result<Arc<G>> {
        let mut state = self.lock();
        loop {
            let before = state.ahead;
            match state.touch(index) {
                Some(Some(group)) => {
                    if state.ahead < before {
                        self.changed.notify_all();
                    }
                    return Ok(group);
                }
                Some(None) => state = self.wait(state),
                None => break,
            }
        }
        state.announced.retain(|(announced, _)| *announced != index);
        state.slots.insert(index, Slot::Decoding { ahead: 0 });
        drop(state);

        let claim = Claim { cache: self, index, filled: false };
        let group = Arc::new(decode()?);
        claim.fill(group.clone(), false);
        Ok(group)
    }

    /// Says which groups are asked for soon, and the memory they may take.
    pub fn announce(&self, groups: impl Iterator<Item = (usize, usize)>) {
        let mut state = self.lock();
        for (index, bytes) in groups {
            let known = state.slots.contains_key(&index)
                || state.announced.iter().any(|(announced, _)| *announced == index);
            if !known {
                state.announced.push_back((index, bytes));
            }
        }
        let forgotten = state.announced.len().saturating_sub(MOST_ANNOUNCED);
        state.announced.drain(..forgotten);
        drop(state);
        self.changed.notify_all();
    }

    /// Decodes announced groups until the cache is closed. What nobody has asked for yet takes at most half of the
    /// memory, so groups in use stay. An error is left to the one who asks: he tries again.
    pub fn decode_ahead(&self, decode: impl Fn(usize) -> Result<G>) {
        while let Some(claim) = self.next_announced() {
            match decode(claim.index) {
                Ok(group) => claim.fill(Arc::new(group), true),
                Err(error) => tracing::debug!("reading ahead failed: {error}"),
            }
        }
    }

    /// Gives back what nobody will ask for any more. A group in flight comes all the same and is put out as any other.
    pub fn forget(&self, groups: Range<usize>) {
        let mut state = self.lock();
        state.announced.retain(|(index, _)| !groups.contains(index));
        let ready = |(index, slot): (&usize, &Slot<G>)| {
            (groups.contains(index) && matches!(slot, Slot::Ready { .. })).then_some(*index)
        };
        let ready: Vec<usize> = state.slots.iter().filter_map(ready).collect();
        ready.into_iter().for_each(|index| state.remove(index));
        drop(state);
        self.changed.notify_all();
    }

    /// Ends [`GroupCache::decode_ahead`] on all threads.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Memory of all groups.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn next_announced(&self) -> Option<Claim<'_, G>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            match state.announced.front().copied() {
                Some((index, bytes)) if state.ahead == 0 || state.ahead + bytes <= self.max_bytes / 2 => {
                    state.announced.pop_front();
                    state.ahead += bytes;
                    state.slots.insert(index, Slot::Decoding { ahead: bytes });
                    return Some(Claim { cache: self, index, filled: false });
                }
                _ => state = self.wait(state),
            }
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<G>>) -> MutexGuard<'a, State<G>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G> State<G> {
    /// `None`: not there; `Some(None)`: being decoded. Either way it has been asked for.
    fn touch(&mut self, index: usize) -> Option<Option<Arc<G>>> {
        self.clock += 1;
        match self.slots.get_mut(&index)? {
            Slot::Decoding { ahead } => {
                self.ahead -= std::mem::take(ahead);
                Some(None)
            }
            Slot::Ready { group, last_used, ahead, .. } => {
                self.ahead -= std::mem::take(ahead);
                *last_used = self.clock;
                Some(Some(group.clone()))
            }
        }
    }

    fn remove(&mut self, index: usize) {
        match self.slots.remove(&index) {
            Some(Slot::Ready { bytes, ahead, .. }) => {
                self.bytes -= bytes;
                self.ahead -= ahead;
            }
            Some(Slot::Decoding { ahead }) => self.ahead -= ahead,
            None => {}
        }
    }

    /// Puts out what was asked for before what waits to be: that would be decoded twice.
    fn evict(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let oldest = self.slots.iter().filter_map(|(index, slot)| match slot {
                Slot::Ready { last_used, ahead, .. } if *last_used < self.clock => {
                    let waits = *ahead > 0 && self.clock - last_used < LONGEST_WAIT;
                    Some((waits, *last_used, *index))
                }
                _ => None,
            });
            let Some((_, _, index)) = oldest.min() else { return };
            self.remove(index);
        }
    }
}

/// The right to decode a group; given up by leaving (an error), so that no one waits for ever.
struct Claim<'a, G> {
    cache: &'a GroupCache<G>,
    index: usize,
    filled: bool,
}

impl<G> Claim<'_, G> {
    fn fill(mut self, group: Arc<G>, ahead: bool) {
        let bytes = (self.cache.bytes_of)(&group);
        let mut state = self.cache.lock();
        // Nobody has asked for it as long as its part of `ahead` has not been given back.
        let unasked = ahead && matches!(state.slots.get(&self.index), Some(Slot::Decoding { ahead: 1.. }));
        state.remove(self.index);
        state.clock += 1;
        state.bytes += bytes;
        let (last_used, ahead) = (state.clock, if unasked { bytes } else { 0 });
        state.ahead += ahead;
        state.slots.insert(self.index, Slot::Ready { group, bytes, last_used, ahead });
        state.evict(self.cache.max_bytes);
        drop(state);
        self.filled = true;
    }
}

impl<G> Drop for Claim<'_, G> {
    fn drop(&mut self) {
        // Once filled the slot is not this claim's any more: others may have put it out and claimed it again.
        if !self.filled {
            self.cache.lock().remove(self.index);
        }
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
