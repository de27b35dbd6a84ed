//! A few threads that share out a list of work, for copies and checks that one core cannot do at the machine's speed.

use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism};

/// More threads than this make neither memory nor a disk faster.
const MAX_THREADS: usize = 8;

/// Calls `each` for every item, in order of the list but several at a time. It ends early after the first failure; of
/// several failures that of the earliest item is the result.
pub(crate) fn for_each<T: Send, E: Send>(
    items: Vec<T>,
    each: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let others = available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS).min(items.len()).max(1) - 1;
    let queue = Mutex::new(items.into_iter().enumerate());
    let failed = Mutex::new(None::<(usize, E)>);
    let next = || if hold(&failed).is_some() { None } else { hold(&queue).next() };
    let work = || {
        while let Some((index, item)) = next() {
            if let Err(error) = each(item) {
                let mut failed = hold(&failed);
                if failed.as_ref().is_none_or(|(other, _)| index < *other) {
                    *failed = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..others {
            // A machine that has no more threads to give still does the work on this one.
            let _ = Builder::new().name("checkpoint-helper".into()).spawn_scoped(scope, work);
        }
        work();
    });
    let failed = hold(&failed).take();
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for count in [0, 1, 2, 1000] {
            let done: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let each = |i: usize| {
                done[i].fetch_add(1, Ordering::Relaxed);
                Ok::<_, ()>(())
            };
            assert_eq!(for_each((0..count).collect(), each), Ok(()));
            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn the_earliest_failure_is_the_result_and_ends_the_work() {
        let done = AtomicUsize::new(0);
        let each = |i: usize| {
            done.fetch_add(1, Ordering::Relaxed);
            if i >= 3 { Err(i) } else { Ok(()) }
        };
        assert_eq!(for_each((0..100_000).collect(), each), Err(3));
        assert!(done.load(Ordering::Relaxed) < 100_000);
    }
}
