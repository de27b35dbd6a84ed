//! How the process gets memory from the operating system.

/// Keeps freed memory in the process instead of giving it back after every tensor.
///
/// By default glibc maps every large tensor anew, and the page faults of a step's first touches cost up to a quarter of
/// its time (large vocabularies most).
pub fn keep_freed_memory() {
    const LARGEST_KEPT: i32 = 1 << 30;
    #[cfg(target_env = "gnu")]
    for setting in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt only changes settings of the allocator, and an unknown value is refused, not acted upon.
        unsafe { libc::mallopt(setting, LARGEST_KEPT) };
    }
}
