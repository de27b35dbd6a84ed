//! Items made ahead by threads and handed out in order; bounded, without deadlock, and all threads end with the owner.
//!
//! Thread k makes the items k, k + threads, k + 2 * threads, ... into its own bounded channel, and the owner takes them in
//! turn. Whenever the owner waits, the channel it waits for is empty, so the thread that fills it cannot be blocked.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, bounded};

use crate::error::{Error, Result};

/// Makes an item by its number; `None` after the last one. Called from several threads.
pub(crate) type Make<T> = dyn Fn(u64) -> Option<Result<T>> + Send + Sync;

/// The items 0, 1, 2, ... in order.
pub(crate) struct Prefetch<T> {
    /// In turn: the front one has the next item.
    channels: VecDeque<Receiver<Result<T>>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `threads` threads that hold about `ahead` finished items in all.
    pub fn spawn(threads: usize, ahead: usize, make: Arc<Make<T>>) -> Result<Self> {
        let threads = threads.max(1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut prefetch = Self { channels: VecDeque::new(), threads: Vec::new(), stop };
        for first in 0..threads {
            let (sender, receiver) = bounded(ahead.div_ceil(threads).max(1));
            let (make, stop) = (make.clone(), prefetch.stop.clone());
            let work = move || {
                for index in (first as u64..).step_by(threads) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let Some(item) = make(index) else { return };
                    let failed = item.is_err();
                    if sender.send(item).is_err() || failed {
                        return;
                    }
                }
            };
            let name = format!("ilm-data-{first}");
            let thread = std::thread::Builder::new().name(name).spawn(work).map_err(Error::Thread)?;
            prefetch.channels.push_back(receiver);
            prefetch.threads.push(thread);
        }
        Ok(prefetch)
    }

    /// The next item; `None` when its thread has ended, which is after the last item, an error or a panic.
    pub fn next(&mut self) -> Option<Result<T>> {
        let item = self.channels.front()?.recv().ok()?;
        self.channels.rotate_left(1);
        Some(item)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.channels.clear();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn spawn(
        threads: usize,
        ahead: usize,
        make: impl Fn(u64) -> Option<Result<u64>> + Send + Sync + 'static,
    ) -> Prefetch<u64> {
        Prefetch::spawn(threads, ahead, Arc::new(make)).unwrap()
    }

    #[test]
    fn items_come_in_order_and_end() {
        for threads in [1, 2, 3, 7] {
            for ahead in [0, 1, 10] {
                let mut items = spawn(threads, ahead, |index| (index < 50).then_some(Ok(index)));
                let taken: Vec<u64> = std::iter::from_fn(|| items.next()).map(Result::unwrap).collect();
                assert_eq!(taken, (0..50).collect::<Vec<_>>());
                assert!(items.next().is_none());
            }
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_is_the_last_item() {
        let mut items =
            spawn(3, 9, |index| Some(if index == 5 { Err(Error::LoaderStopped) } else { Ok(index) }));
        assert_eq!((0..5).map(|_| items.next().unwrap().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(items.next().unwrap().is_err());
    }

    #[test]
    fn a_panicking_thread_ends_the_items_and_blocks_no_one() {
        let mut items = spawn(2, 2, |index| {
            assert!(index != 3, "a bug on purpose");
            Some(Ok(index))
        });
        assert_eq!((0..3).filter_map(|_| items.next()).count(), 3);
        assert!(items.next().is_none());
    }

    #[test]
    fn work_ahead_is_bounded_and_dropping_ends_the_threads() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = made.clone();
        let mut items = spawn(4, 8, move |index| {
            counter.fetch_add(1, Ordering::SeqCst);
            Some(Ok(index))
        });
        for _ in 0..100 {
            items.next().unwrap().unwrap();
        }
        drop(items);
        // 100 taken, 8 in channels, one in the hands of each thread.
        assert!(made.load(Ordering::SeqCst) <= 112);
        assert_eq!(Arc::strong_count(&made), 1, "a thread still holds its work");
    }
}
