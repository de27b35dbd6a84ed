//! Whether all ranks are at the same operation: 16 bytes of reduction before any data moves.

use std::ffi::c_int;

use mpi::ffi;
use xxhash_rust::xxh3::xxh3_64;

use super::mpi::{check, ilm_mpi_in_place};

/// A question that is under way on a communicator.
pub(super) struct Agreement {
    hash: u64,
    /// The largest hash of any rank and the largest complement. They stay in place while MPI writes them.
    extremes: Box<[u64; 2]>,
    request: ffi::MPI_Request,
}

impl Agreement {
    /// Asks whether all ranks are at the operation that `identity` describes.
    pub(super) fn begin(comm: ffi::MPI_Comm, identity: &str) -> Result<Self, c_int> {
        let hash = xxh3_64(identity.as_bytes());
        let mut extremes = Box::new([hash, !hash]);
        // SAFETY: a constant of an initialised MPI.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: two 64-bit integers, reduced in place; they live until the request is complete (see `drop`).
        check(unsafe {
            ffi::MPI_Iallreduce(
                ilm_mpi_in_place(),
                extremes.as_mut_ptr().cast(),
                2,
                ffi::RSMPI_UINT64_T,
                ffi::RSMPI_MAX,
                comm,
                &raw mut request,
            )
        })?;
        Ok(Self { hash, extremes, request })
    }

    /// The answer, if it is there: both extremes are one's own exactly if all ranks have the same hash.
    pub(super) fn answer(&mut self) -> Result<Option<bool>, c_int> {
        let mut done: c_int = 0;
        // SAFETY: a request of ours, which MPI sets to null when it is complete.
        check(unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok((done != 0).then(|| *self.extremes == [self.hash, !self.hash]))
    }

    /// Waits for the answer.
    pub(super) fn wait(mut self) -> Result<bool, c_int> {
        // SAFETY: as in `answer`.
        check(unsafe { ffi::MPI_Wait(&raw mut self.request, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(*self.extremes == [self.hash, !self.hash])
    }
}

impl Drop for Agreement {
    fn drop(&mut self) {
        // SAFETY: a constant of an initialised MPI.
        if self.request != unsafe { ffi::RSMPI_REQUEST_NULL } {
            // MPI may still write here. This happens once, before the job ends with an error.
            Box::leak(std::mem::take(&mut self.extremes));
        }
    }
}
