//! Items made ahead by threads and handed out in order; bounded, without deadlock, and all threads that do not hang end
//! with the owner.
//!
//! Thread k makes the items k, k + threads, k + 2 * threads, ... into its own bounded channel, and the owner takes them in
//! turn. Whenever the owner waits, the channel it waits for is empty, so the thread that fills it cannot be blocked.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};

/// How often somebody who waits for an item asks whether he still should.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long an owner waits for its threads to end: they do so after a row, unless they hang in a read.
const PARTING: Duration = Duration::from_secs(1);

/// What waiting for an item came to.
#[derive(Debug)]
pub enum Next<T> {
    /// The item.
    Item(T),
    /// There are no more.
    End,
    /// The wait was given up. The threads are left to themselves from then on: one may hang in a read that never ends.
    Stopped,
}

/// The items of jobs, in the order of the jobs.
pub(crate) struct Prefetch<T> {
    /// In turn: the front one has the next item.
    channels: VecDeque<Receiver<Result<T>>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Finished items that were not taken yet.
    ready: AtomicUsize,
}

/// Tells a thread to give up its item, because nobody will take it.
pub(crate) struct Stop<'a>(&'a AtomicBool);

impl Stop<'_> {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `threads` threads that make items ahead: at most `ahead`, rounded up to a multiple of the threads, are
    /// finished or in the making. `make` is called from several threads; an error is a thread's last item.
    pub fn spawn<J>(
        threads: usize,
        ahead: usize,
        jobs: impl Iterator<Item = J> + Clone + Send + 'static,
        make: impl Fn(J, &Stop<'_>) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let threads = threads.max(1);
        let make = Arc::new(make);
        let mut prefetch = Self { channels: VecDeque::new(), threads: Vec::new(), shared: Arc::default() };
        for first in 0..threads {
            // One item of the thread's share is in its hands.
            let (sender, receiver) = bounded(ahead.div_ceil(threads).saturating_sub(1));
            let (make, shared) = (make.clone(), prefetch.shared.clone());
            let jobs = jobs.clone().skip(first).step_by(threads);
            let work = move || deliver(jobs, &*make, &shared, &sender);
            let name = format!("ilm-data-{first}");
            let thread = std::thread::Builder::new().name(name).spawn(work).map_err(Error::Thread)?;
            prefetch.channels.push_back(receiver);
            prefetch.threads.push(thread);
        }
        Ok(prefetch)
    }

    /// The next item, waited for.
    #[cfg(test)]
    fn next(&mut self) -> Option<Result<T>> {
        match self.next_unless(&|| false) {
            Next::Item(item) => Some(item),
            Next::End | Next::Stopped => None,
        }
    }

    /// The next item, unless `stop` holds before it is there; the end when its thread has ended, which is after the last item, an
    /// error or a panic.
    pub fn next_unless(&mut self, stop: &dyn Fn() -> bool) -> Next<Result<T>> {
        let Some(channel) = self.channels.front() else { return Next::End };
        let item = loop {
            match channel.recv_timeout(ASK_AGAIN) {
                Ok(item) => break item,
                Err(RecvTimeoutError::Disconnected) => return Next::End,
                Err(RecvTimeoutError::Timeout) if !stop() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.shared.stop.store(true, Ordering::Relaxed);
                    self.channels.clear();
                    self.threads.clear();
                    return Next::Stopped;
                }
            }
        };
        self.shared.ready.fetch_sub(1, Ordering::Relaxed);
        self.channels.rotate_left(1);
        Next::Item(item)
    }

    /// Finished items that wait to be taken.
    pub fn ready(&self) -> usize {
        self.shared.ready.load(Ordering::Relaxed)
    }
}

fn deliver<J, T>(
    jobs: impl Iterator<Item = J>,
    make: &impl Fn(J, &Stop<'_>) -> Result<T>,
    shared: &Shared,
    sender: &Sender<Result<T>>,
) {
    let stop = Stop(&shared.stop);
    for job in jobs {
        if stop.is_set() {
            return;
        }
        let item = make(job, &stop);
        let failed = item.is_err();
        shared.ready.fetch_add(1, Ordering::Relaxed);
        if sender.send(item).is_err() || failed {
            return;
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.channels.clear();
        part_from(self.threads.drain(..));
    }
}

/// Waits a moment for the end of threads that were told to stop. One that hangs is left to itself: it owns what it
/// uses, and who waited for it could neither end nor tell what went wrong.
pub(crate) fn part_from(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let begun = Instant::now();
    for thread in threads {
        while !thread.is_finished() {
            if begun.elapsed() > PARTING {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // A panic has been reported by the thread itself.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn spawn(
        threads: usize,
        ahead: usize,
        jobs: std::ops::Range<u64>,
        make: impl Fn(u64) -> Result<u64> + Send + Sync + 'static,
    ) -> Prefetch<u64> {
        Prefetch::spawn(threads, ahead, jobs, move |job, _: &Stop<'_>| make(job)).unwrap()
    }

    #[test]
    fn items_come_in_order_and_end() {
        for threads in [1, 2, 3, 7] {
            for ahead in [0, 1, 10] {
                let mut items = spawn(threads, ahead, 0..50, Ok);
                let taken: Vec<u64> = std::iter::from_fn(|| items.next()).map(Result::unwrap).collect();
                assert_eq!(taken, (0..50).collect::<Vec<_>>());
                assert!(items.next().is_none());
            }
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_is_the_last_item() {
        let mut items =
            spawn(3, 9, 0..100, |index| if index == 5 { Err(Error::LoaderStopped) } else { Ok(index) });
        assert_eq!((0..5).map(|_| items.next().unwrap().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(items.next().unwrap().is_err());
    }

    #[test]
    fn a_panicking_thread_ends_the_items_and_blocks_no_one() {
        let mut items = spawn(2, 2, 0..100, |index| {
            assert!(index != 3, "a bug on purpose");
            Ok(index)
        });
        assert_eq!((0..3).filter_map(|_| items.next()).count(), 3);
        assert!(items.next().is_none());
    }

    #[test]
    fn work_ahead_is_bounded_and_dropping_ends_the_threads() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = made.clone();
        let mut items = spawn(4, 8, 0..u64::MAX, move |index| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(index)
        });
        for _ in 0..100 {
            items.next().unwrap().unwrap();
        }
        drop(items);
        // 100 taken, 8 in channels or in the hands of threads.
        assert!(made.load(Ordering::SeqCst) <= 108);
        assert_eq!(Arc::strong_count(&made), 1, "a thread still holds its work");
    }

    #[test]
    fn a_thread_in_the_middle_of_an_item_is_told_to_stop() {
        let make = |_: u64, stop: &Stop<'_>| {
            while !stop.is_set() {
                std::thread::yield_now();
            }
            Ok(0u64)
        };
        drop(Prefetch::spawn(2, 2, 0..10, make).unwrap());
    }

    #[test]
    fn a_wait_that_is_given_up_ends_though_the_thread_does_not() {
        let (send, receive) = bounded::<()>(0);
        let mut items = spawn(1, 1, 0..10, move |index| {
            // As long as the test lives: a read that hangs.
            let _ = receive.recv();
            Ok(index)
        });
        assert!(matches!(items.next_unless(&|| true), Next::Stopped));
        assert!(items.next().is_none());
        drop(items);
        drop(send);
    }

    #[test]
    fn dropping_waits_for_no_thread_that_hangs() {
        let (send, receive) = bounded::<()>(0);
        let (begins, begun) = bounded(2);
        let hanging = Arc::new(());
        let held = hanging.clone();
        let items = spawn(2, 2, 0..10, move |index| {
            let _ = begins.try_send(());
            let _ = (receive.recv(), &held);
            Ok(index)
        });
        begun.recv().unwrap();
        drop(items);
        assert!(Arc::strong_count(&hanging) > 1, "the threads still hang");
        // They end when their reads do.
        drop(send);
        while Arc::strong_count(&hanging) > 1 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn ready_items_are_counted() {
        let mut items = spawn(2, 4, 0..4, Ok);
        while items.ready() < 4 {
            std::thread::yield_now();
        }
        items.next().unwrap().unwrap();
        assert_eq!(items.ready(), 3);
    }
}
