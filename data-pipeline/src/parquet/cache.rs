//! Decoded row groups, shared by the data threads: bounded, least recently used first out, each decoded once at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::error::Result;

/// A bounded map from group numbers to decoded groups `G`.
#[derive(Debug)]
pub(super) struct GroupCache<G> {
    /// Memory a group takes.
    bytes_of: fn(&G) -> usize,
    max_groups: usize,
    max_bytes: usize,
    state: Mutex<State<G>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<G> {
    slots: HashMap<usize, Slot<G>>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
enum Slot<G> {
    /// A thread decodes it.
    Decoding,
    /// It is there.
    Ready { group: Arc<G>, bytes: usize, last_used: u64 },
}

impl<G> GroupCache<G> {
    /// Keeps at most so many groups and bytes, but always the newest group.
    pub fn new(max_groups: usize, max_bytes: usize, bytes_of: fn(&G) -> usize) -> Self {
        let state = Mutex::new(State { slots: HashMap::new(), bytes: 0, clock: 0 });
        Self { bytes_of, max_groups: max_groups.max(1), max_bytes, state, changed: Condvar::new() }
    }

    /// The group, decoded by `decode` unless it is there; threads that ask meanwhile wait for it. After an error the
    /// next one who asks tries again.
    pub fn get(&self, index: usize, decode: impl FnOnce() -> Result<G>) -> Result<Arc<G>> {
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

        let claim = Claim { cache: self, index, filled: false };
        let group = Arc::new(decode()?);
        claim.fill(group.clone());
        Ok(group)
    }

    fn lock(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G> State<G> {
    /// `None`: not there; `Some(None)`: being decoded.
    fn touch(&mut self, index: usize) -> Option<Option<Arc<G>>> {
        self.clock += 1;
        match self.slots.get_mut(&index)? {
            Slot::Decoding => Some(None),
            Slot::Ready { group, last_used, .. } => {
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
            if let Some(Slot::Ready { bytes, .. }) = self.slots.remove(&index) {
                self.bytes -= bytes;
            }
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
    fn fill(mut self, group: Arc<G>) {
        let bytes = (self.cache.bytes_of)(&group);
        let mut state = self.cache.lock();
        state.clock += 1;
        state.bytes += bytes;
        let last_used = state.clock;
        state.slots.insert(self.index, Slot::Ready { group, bytes, last_used });
        state.evict(self.cache.max_groups, self.cache.max_bytes);
        drop(state);
        self.filled = true;
    }
}

impl<G> Drop for Claim<'_, G> {
    fn drop(&mut self) {
        // Once filled the slot is not this claim's any more: others may have put it out and claimed it again.
        if !self.filled {
            self.cache.lock().slots.remove(&self.index);
        }
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::error::Error;

    /// Groups are their own size in bytes.
    fn cache(max_groups: usize, max_bytes: usize) -> GroupCache<usize> {
        GroupCache::new(max_groups, max_bytes, |group| *group)
    }

    /// Asks for a group; true if it had to be decoded.
    fn decodes(cache: &GroupCache<usize>, index: usize, bytes: usize) -> bool {
        let mut decoded = false;
        cache
            .get(index, || {
                decoded = true;
                Ok(bytes)
            })
            .unwrap();
        decoded
    }

    #[test]
    fn keeps_the_most_recently_used_groups() {
        let cache = cache(2, 1000);
        assert!(decodes(&cache, 0, 1) && decodes(&cache, 1, 1));
        assert!(!decodes(&cache, 0, 1));
        assert!(decodes(&cache, 2, 1), "puts out 1, the least recently used");
        assert!(!decodes(&cache, 0, 1) && !decodes(&cache, 2, 1));
        assert!(decodes(&cache, 1, 1));
    }

    #[test]
    fn keeps_no_more_bytes_than_allowed_but_always_the_newest_group() {
        let cache = cache(100, 10);
        for index in 0..20 {
            assert!(decodes(&cache, index, 4));
            let state = cache.lock();
            assert!(state.bytes <= 10 && state.slots.len() <= 2);
        }
        assert!(decodes(&cache, 50, 10_000));
        assert_eq!(cache.lock().slots.len(), 1);
        assert!(!decodes(&cache, 50, 10_000));
    }

    #[test]
    fn an_error_is_not_kept() {
        let cache = cache(2, 10);
        assert!(cache.get(3, || Err(Error::LoaderStopped)).is_err());
        assert!(cache.lock().slots.is_empty());
        assert!(decodes(&cache, 3, 1));
    }

    #[test]
    fn threads_that_ask_for_a_group_share_one_decoding() {
        let cache = cache(4, 100);
        let (decoded, start) = (AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    for index in 0..4 {
                        let decode = || {
                            decoded.fetch_add(1, Ordering::SeqCst);
                            Ok(1)
                        };
                        cache.get(index, decode).unwrap();
                    }
                });
            }
        });
        assert_eq!(decoded.into_inner(), 4);
    }
}
