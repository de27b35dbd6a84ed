//! The one place that says on which threads the update runs.

use ilm_model::parallel;

/// Elements that one task takes: 256 KiB of one array. Fixed, because the order of additions in a norm depends on it.
pub(super) const CHUNK: usize = 1 << 16;

/// Calls `work` on every task, on all threads of the rank; the results are in the order of the tasks.
pub(super) fn map<T: Send, R: Send>(tasks: Vec<T>, work: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    let mut results: Vec<Option<R>> = tasks.iter().map(|_| None).collect();
    let items = tasks.into_iter().zip(&mut results).collect();
    parallel::for_each_item(items, |(task, result): (T, &mut Option<R>)| *result = Some(work(task)));
    results.into_iter().flatten().collect()
}
