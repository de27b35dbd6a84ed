//! Host memory of batches: one slab of words each, made by an allocator the caller gives, and used again and again.

use std::{
    fmt,
    ops::DerefMut,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::{Error, Result};

/// A piece of host memory of a fixed number of words.
pub trait HostSlab: DerefMut<Target = [i64]> + Send + Sync {}

impl<T: DerefMut<Target = [i64]> + Send + Sync> HostSlab for T {}

/// Makes host memory. A GPU wants it page-locked, so that copies need no detour and run beside the computation.
pub trait HostMemory: Send + Sync {
    /// At least `words` words, holding any numbers.
    ///
    /// # Errors
    /// [`Error::HostMemory`] when there is no such memory left.
    fn allocate(&self, words: usize) -> Result<Box<dyn HostSlab>>;
}

/// Ordinary memory of the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainMemory;

impl HostMemory for PlainMemory {
    fn allocate(&self, words: usize) -> Result<Box<dyn HostSlab>> {
        let mut slab = Vec::new();
        slab.try_reserve_exact(words)
            .map_err(|error| Error::HostMemory { words, reason: error.to_string() })?;
        slab.resize(words, 0);
        Ok(Box::new(slab))
    }
}

/// Slabs that wait for their next batch. Batches come in many sizes, so slabs are a power of two long and a batch takes
/// the smallest one that holds it.
pub struct BatchPool {
    memory: Arc<dyn HostMemory>,
    kept: usize,
    /// Ascending by length.
    free: Mutex<Vec<Box<dyn HostSlab>>>,
}

impl BatchPool {
    /// Least words of a slab.
    const LEAST: usize = 1024;

    /// A pool that keeps at most `kept` unused slabs of `memory`.
    pub fn new(memory: Arc<dyn HostMemory>, kept: usize) -> Arc<Self> {
        Arc::new(Self { memory, kept, free: Mutex::default() })
    }

    /// Slabs that wait for use.
    pub fn free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// At least `words` words, holding whatever the last batch left there.
    fn take(&self, words: usize) -> Result<Box<dyn HostSlab>> {
        let kept = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = free.partition_point(|slab| slab.len() < words);
            (fits < free.len()).then(|| free.remove(fits))
        };
        if let Some(slab) = kept {
            return Ok(slab);
        }
        let rounded = words.max(Self::LEAST).checked_next_power_of_two().unwrap_or(words);
        let slab = self.memory.allocate(rounded)?;
        if slab.len() < words {
            let reason = format!("the allocator gave only {}", slab.len());
            return Err(Error::HostMemory { words, reason });
        }
        Ok(slab)
    }

    /// Keeps a slab for later. When there are too many the smallest goes: a large one serves every batch.
    fn give_back(&self, slab: Box<dyn HostSlab>) {
        let surplus = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let place = free.partition_point(|other| other.len() < slab.len());
            free.insert(place, slab);
            (free.len() > self.kept).then(|| free.remove(0))
        };
        // Page-locked memory is slow to free: not while other threads wait for the lock.
        drop(surplus);
    }
}

impl fmt::Debug for BatchPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchPool")
            .field("kept", &self.kept)
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

/// A slab in use; it goes back to its pool, if it has one.
pub(crate) struct Slab {
    words: Box<dyn HostSlab>,
    pool: Option<Arc<BatchPool>>,
}

impl Slab {
    /// From a pool.
    pub fn pooled(pool: &Arc<BatchPool>, words: usize) -> Result<Self> {
        Ok(Self { words: pool.take(words)?, pool: Some(pool.clone()) })
    }

    /// Ordinary memory of its own.
    pub fn plain(words: Vec<i64>) -> Self {
        Self { words: Box::new(words), pool: None }
    }

    pub fn words(&self) -> &[i64] {
        &self.words
    }

    pub fn words_mut(&mut self) -> &mut [i64] {
        &mut self.words
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::replace(&mut self.words, Box::new(Vec::new())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what is asked of it.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl HostMemory for Counted {
        fn allocate(&self, words: usize) -> Result<Box<dyn HostSlab>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            PlainMemory.allocate(words)
        }
    }

    #[test]
    fn slabs_are_used_again_and_a_batch_takes_the_smallest_that_fits() {
        let memory = Arc::new(Counted::default());
        let pool = BatchPool::new(memory.clone(), 4);
        drop((Slab::pooled(&pool, 5000).unwrap(), Slab::pooled(&pool, 20).unwrap()));
        for _ in 0..100 {
            let small = Slab::pooled(&pool, 1000).unwrap();
            assert_eq!(small.words().len(), 1024);
            assert!(Slab::pooled(&pool, 4100).unwrap().words().len() >= 5000);
        }
        assert_eq!((memory.0.load(Ordering::SeqCst), pool.free()), (2, 2));
    }

    #[test]
    fn a_bounded_number_is_kept_and_large_ones_stay() {
        let pool = BatchPool::new(Arc::new(PlainMemory), 2);
        let slabs: Vec<Slab> =
            [9000, 10, 3000, 40_000].map(|words| Slab::pooled(&pool, words).unwrap()).into();
        drop(slabs);
        assert_eq!(pool.free(), 2);
        assert!(Slab::pooled(&pool, 10).unwrap().words().len() >= 9000);
        let none = BatchPool::new(Arc::new(PlainMemory), 0);
        drop(Slab::pooled(&none, 10).unwrap());
        assert_eq!(none.free(), 0);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        struct Short;
        impl HostMemory for Short {
            fn allocate(&self, _: usize) -> Result<Box<dyn HostSlab>> {
                PlainMemory.allocate(1)
            }
        }
        assert!(matches!(
            Slab::pooled(&BatchPool::new(Arc::new(Short), 1), 7),
            Err(Error::HostMemory { words: 7, .. })
        ));
        let pool = BatchPool::new(Arc::new(PlainMemory), 1);
        assert!(matches!(Slab::pooled(&pool, usize::MAX), Err(Error::HostMemory { .. })));
    }
}
