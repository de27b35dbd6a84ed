//! Loops on the threads that libtorch computes with.
//!
//! A second pool would fight with libtorch's for the processors: OpenMP's threads stay awake for a while after each of its loops.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::native::{Team, native};

/// Calls `task` with every number below `tasks`, in no fixed order, on all threads of libtorch.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    let team = native().team.filter(|team| tasks > 1 && can_fork(team));
    let Some(team) = team else { return (0..tasks).for_each(task) };
    let next = AtomicUsize::new(0);
    fork(team, &|| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    });
}

/// Calls `task` with every item, in no fixed order, on all threads of libtorch.
pub fn for_each_item<I: Send>(items: Vec<I>, task: impl Fn(I) + Sync) {
    let tasks = items.len();
    let queue = Mutex::new(items.into_iter());
    for_each(tasks, |_| {
        let item = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        if let Some(item) = item {
            task(item);
        }
    });
}

/// Memory that several tasks write at the same time, each its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: only `slice` and `all` give access, whose callers take care of each other.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn of(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// Address of `len` elements.
    #[inline(always)]
    pub(crate) fn address(self, start: usize, len: usize) -> *mut T {
        assert!(start + len <= self.len);
        self.start.wrapping_add(start)
    }

    /// # Safety
    /// The memory is valid during `'a`, and nobody else uses these elements.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: inside the slice that this was made of, by the caller's promise exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address(start, len), len) }
    }

    /// # Safety
    /// The memory is valid during `'a`, and the caller reads nothing that others write.
    #[inline(always)]
    pub(crate) unsafe fn all<'a>(self) -> &'a [T] {
        // SAFETY: the slice that this was made of, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// Threads that loops run on.
pub(crate) fn threads() -> usize {
    // SAFETY: the function only reads the process's settings.
    native().team.map_or(1, |team| unsafe { (team.max_threads)() }.max(1) as usize)
}

fn can_fork(team: &Team) -> bool {
    // SAFETY: both functions only read the calling thread's state.
    unsafe { (team.in_parallel)() == 0 && (team.max_threads)() > 1 }
}

type Panic = Box<dyn Any + Send>;

struct Fork<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Panic>>,
}

/// Runs `work` once on every thread of the team; a panic in one of them is this call's.
fn fork(team: Team, work: &(dyn Fn() + Sync)) {
    let fork = Fork { work, panic: Mutex::new(None) };
    // SAFETY: `run` gets the address of a value that outlives the call, which returns when all threads have returned.
    unsafe { (team.parallel)(run, (&raw const fork).cast_mut().cast(), 0, 0) };
    let panic = fork.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

extern "C" fn run(fork: *mut c_void) {
    // SAFETY: the address that `fork` passed, of a value that is shared by reference only.
    let fork = unsafe { &*fork.cast::<Fork>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(fork.work)) {
        *fork.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_nested_loops_run_in_place() {
        let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        for_each(100, |outer| {
            for_each(10, |inner| {
                counts[10 * outer + inner].fetch_add(1, Ordering::Relaxed);
            });
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn items_are_handed_out_once() {
        let mut values = vec![0; 777];
        for_each_item(values.chunks_mut(5).enumerate().collect(), |(index, chunk)| {
            chunk.iter_mut().for_each(|value| *value += index);
        });
        assert!(values.iter().enumerate().all(|(at, &value)| value == at / 5));
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let caught = catch_unwind(|| for_each(8, |index| assert_ne!(index, 5, "five")));
        assert!(caught.is_err());
    }
}
