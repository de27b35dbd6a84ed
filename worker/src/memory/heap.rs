//! The heap: what is freed stays in the process, and the kernel backs it with huge pages.

/// Sets the allocator up. To be called before anything large is allocated.
pub fn set_up_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        glibc::keep_freed_memory();
        glibc::ask_for_huge_pages();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::fs;

    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    use nix::unistd::{SysconfVar, sysconf};

    /// By default glibc maps every large tensor anew, and the page faults of a step's first touches cost up to a quarter of
    /// its time (large vocabularies most).
    pub(super) fn keep_freed_memory() {
        // The threshold above which memory is mapped cannot be set beyond 32 MiB, so nothing is mapped at all; -1 turns giving
        // back off.
        for (setting, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, -1)] {
            // SAFETY: mallopt only changes settings of the allocator, and an unknown value is refused, not acted upon.
            unsafe { libc::mallopt(setting, value) };
        }
    }

    /// A step goes through gigabytes, and with small pages first touches and the look-up of addresses cost up to 15 % of its time,
    /// and a second of a start. Kernels give huge pages to what asks for them; the heap asks for all that it may grow by
    /// before it grows, as memory that it gets later does not.
    pub(super) fn ask_for_huge_pages() {
        let Some(size) = most_growth() else { return };
        // SAFETY: sbrk(0) only tells where the heap ends. The block is not touched, so it takes addresses and no memory, and it
        // is given back at once, which leaves its addresses in the heap, whose pages madvise changes nothing but the size of.
        unsafe {
            let start = libc::sbrk(0) as usize;
            // The compiler must not see that the block is not used, or it leaves both calls out.
            libc::free(std::hint::black_box(libc::malloc(size)));
            let end = libc::sbrk(0) as usize;
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let start = start.next_multiple_of(page);
            libc::madvise(start as *mut libc::c_void, end.saturating_sub(start), libc::MADV_HUGEPAGE);
        }
    }

    /// Most of the machine's memory, by addresses; none where addresses are limited or count as memory, as they are needed for
    /// other things.
    fn most_growth() -> Option<usize> {
        if fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| charges_addresses(&mode)) {
            return None;
        }
        for resource in [Resource::RLIMIT_AS, Resource::RLIMIT_DATA] {
            if getrlimit(resource).ok()?.0 != RLIM_INFINITY {
                return None;
            }
        }
        let known = |name| usize::try_from(sysconf(name).ok()??).ok();
        known(SysconfVar::_PHYS_PAGES)?
            .checked_mul(known(SysconfVar::PAGE_SIZE)?)?
            .checked_div(8)?
            .checked_mul(7)
    }

    /// Whether the kernel counts addresses as memory that is taken, by its text on `vm.overcommit_memory`: other programs, and other
    /// ranks, would find that little is left.
    fn charges_addresses(mode: &str) -> bool {
        mode.trim() == "2"
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn addresses_are_dear_only_where_memory_may_not_be_overcommitted() {
            assert_eq!(["0\n", "1\n", "2\n", ""].map(charges_addresses), [false, false, true, false]);
        }
    }
}
