//! Long jobs say how far they are, ask whether to stop, and share their parts among threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// What has been done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Input files.
    pub files: u64,
    /// Rows read, or for a part of a job that reads none its steps.
    pub rows: u64,
    /// Tokens made.
    pub tokens: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// Is told of a long job, by any of its threads.
pub trait Progress: Sync {
    /// A part of the job begins, of so many rows (or steps).
    fn begin(&self, part: &str, rows: u64);

    /// So much more is done.
    fn advance(&self, more: Amounts);

    /// Whether the job should end soon. What is finished is kept.
    fn should_stop(&self) -> bool {
        false
    }
}

/// For those who do not want to know.
impl Progress for () {
    fn begin(&self, _part: &str, _rows: u64) {}
    fn advance(&self, _more: Amounts) {}
}

/// Calls `work(state, index)` for `0..count`, in this order over all threads; a thread keeps one state. After an error or a
/// request to stop no more parts are begun. Returns the states.
pub(crate) fn in_parallel<S: Send>(
    count: usize,
    threads: usize,
    progress: &dyn Progress,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || -> Result<S> {
        let mut state = state();
        while !failed.load(Ordering::Relaxed) && !progress.should_stop() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            work(&mut state, index).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(state)
    };
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("ilm-prepare".into()).spawn_scoped(scope, run);
        let others = (1..threads.min(count)).map(spawn).collect::<std::io::Result<Vec<_>>>();
        let others = others.map_err(|error| {
            failed.store(true, Ordering::Relaxed);
            Error::Thread(error)
        })?;
        let mut states = vec![run()];
        states.extend(others.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        states.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_and_an_error_ends_the_work() {
        for threads in [1, 3, 50] {
            let done = in_parallel(20, threads, &(), Vec::new, |done, index| {
                done.push(index);
                Ok(())
            });
            let mut done = done.unwrap().concat();
            done.sort_unstable();
            assert!(done.into_iter().eq(0..20));
            let begun = AtomicUsize::new(0);
            let failed = in_parallel(
                1000,
                threads,
                &(),
                || (),
                |(), index| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    if index == 2 { Err(Error::LoaderStopped) } else { Ok(()) }
                },
            );
            assert!(failed.is_err() && (threads > 1 || begun.into_inner() == 3));
        }
    }
}
