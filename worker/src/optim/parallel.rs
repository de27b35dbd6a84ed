//! The one place that says on which threads the update runs.

use rayon::prelude::*;

/// Elements that one task takes: 256 KiB of one array. Fixed, because the order of additions in a norm depends on it.
pub(super) const CHUNK: usize = 1 << 16;

/// Calls `work` on every task, on all threads of the rank; the results are in the order of the tasks.
pub(super) fn map<T: Send, R: Send>(tasks: Vec<T>, work: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    tasks.into_par_iter().map(work).collect()
}
