//! Memory of the process: how it is got from the operating system, and how much of it a rank may use.

mod available;

pub use available::available_per_rank;

/// Keeps freed memory in the process instead of giving it back after every tensor.
///
/// By default glibc maps every large tensor anew, and the page faults of a step's first touches cost up to a quarter of
/// its time (large vocabularies most).
pub fn keep_freed_memory() {
    // The threshold above which memory is mapped cannot be set beyond 32 MiB, so nothing is mapped at all.
    #[cfg(target_env = "gnu")]
    for (setting, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, i32::MAX)] {
        // SAFETY: mallopt only changes settings of the allocator, and an unknown value is refused, not acted upon.
        unsafe { libc::mallopt(setting, value) };
    }
}
