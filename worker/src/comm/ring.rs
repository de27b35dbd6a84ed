//! One piece of a bucket on its way around the ring of ranks, in steps that never wait.
//!
//! A piece is made of one chunk per rank. While it is reduced, chunk `r` starts at rank `r + 1` and every rank adds its own
//! values on the way to rank `r`; while it is gathered, chunk `r` travels on from its owner. The order of additions depends on
//! the number of ranks only. Chunks that are mostly zeros are sent without them ([`sparse`]). Between ranks on one host a chunk is not sent: an empty message says that it may be read, another that
//! it has been. There this takes at most two thirds of the time of MPI's own non-blocking collectives, and it leaves every sum in
//! its own place.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use mpi::ffi;
use nix::errno::Errno;

use super::ExchangeOp;
use super::mpi::check;
use super::neighbour::Neighbour;
use super::sparse;

/// Tags of a travel's messages: with values, or in their place, and the answer that they have been read.
const TAGS: c_int = 2;
/// Tags for travels: with [`TAGS`] each as many as MPI promises.
pub(super) const TRAVEL_TAGS: u64 = 1 << 14;

/// The ring that the pieces travel on.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    pub(super) comm: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    /// Whether the next rank reads this one's memory, so that nothing is sent to it.
    pub(super) read_by_next: bool,
}

/// What keeps a piece from going on.
pub(super) enum Failure {
    /// The code of an MPI call.
    Mpi(c_int),
    /// A message that is no chunk.
    Length { received: usize, expected: usize },
    /// The memory of the rank before cannot be read.
    Memory(Errno),
}

impl From<c_int> for Failure {
    fn from(code: c_int) -> Self {
        Self::Mpi(code)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Memory(error)
    }
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

/// What a message carries: address and number of values.
type Contents = (*mut f32, usize);
const NOTHING: Contents = (std::ptr::null_mut(), 0);

/// Memory that a travel needs besides its piece.
#[derive(Default)]
pub(super) struct Scratch {
    /// Receives what is to be added, if it is sent: at least as many values as a chunk has.
    incoming: Vec<f32>,
    /// What is sent in place of a chunk of zeros.
    outgoing: Vec<f32>,
}

/// A piece under way.
pub(super) struct Travel {
    ring: Ring,
    piece: Piece,
    /// Where the piece lies in the memory of the rank before, if that is read.
    theirs: Option<*const f32>,
    tag: c_int,
    /// The step under way. In steps below `reduce_until` what comes is added, in the others it is kept as it is.
    step: usize,
    reduce_until: usize,
    last: usize,
    /// The message from the rank before, how many values came with it, and whether those that it is about are in their place.
    incoming: ffi::MPI_Request,
    received: usize,
    taken: bool,
    /// The message to the rank after, its answer, and the answer to the rank before.
    others: [ffi::MPI_Request; 3],
    scratch: Scratch,
}

impl Travel {
    /// Sends a piece on its way. All ranks send the same pieces with the same tags, distinct among those under way. `theirs` is
    /// where the piece lies in the rank before, if its memory is read.
    ///
    /// # Safety
    /// The piece's memory is valid, and nobody else touches it, until the travel has ended.
    pub(super) unsafe fn start(
        ring: Ring,
        op: ExchangeOp,
        piece: Piece,
        theirs: Option<*const f32>,
        tag: c_int,
        mut scratch: Scratch,
    ) -> Result<Self, c_int> {
        let hops = ring.world_size - 1;
        let (step, last) = match op {
            ExchangeOp::AllReduce => (0, 2 * hops),
            ExchangeOp::ReduceScatter => (0, hops),
            ExchangeOp::AllGather | ExchangeOp::AllGatherRounded => (hops, 2 * hops),
        };
        if theirs.is_none() && scratch.incoming.len() < piece.len {
            scratch.incoming.resize(piece.len, 0.0);
        }
        // SAFETY: a constant of an initialised MPI.
        let none = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut travel = Self {
            ring,
            piece,
            theirs,
            tag: TAGS * tag,
            step,
            reduce_until: hops,
            last,
            incoming: none,
            received: 0,
            taken: false,
            others: [none; 3],
            scratch,
        };
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
    pub(super) fn into_scratch(mut self) -> Scratch {
        std::mem::take(&mut self.scratch)
    }

    /// Goes on as far as it can without waiting; whether it moved. `before` is the rank before, if its memory is read.
    pub(super) fn advance(&mut self, before: &mut Option<Neighbour>) -> Result<bool, Failure> {
        let mut moved = false;
        while !self.has_ended() {
            if !self.taken {
                if !self.has_come()? || !self.take(before)? {
                    break;
                }
                (self.taken, moved) = (true, true);
            }
            if !done(&mut self.others)? {
                break;
            }
            self.step += 1;
            moved = true;
            if !self.has_ended() {
                self.post()?;
            }
        }
        Ok(moved)
    }

    /// Begins to hear from the rank before and tells the rank after this one.
    fn post(&mut self) -> Result<(), c_int> {
        self.taken = false;
        let ((place, received), (source, sent)) = (self.chunk(self.step + 2), self.chunk(self.step + 1));
        let reduces = self.step < self.reduce_until;
        let incoming = match self.theirs {
            Some(_) => NOTHING,
            None if reduces => (self.scratch.incoming.as_mut_ptr(), received),
            None => (self.own(place), received),
        };
        let outgoing = match self.ring.read_by_next {
            true => NOTHING,
            false if reduces => self.without_zeros(source, sent),
            false => (self.own(source), sent),
        };
        self.incoming = self.receive(incoming, self.previous(), self.tag)?;
        self.others[0] = self.send(outgoing, self.next(), self.tag)?;
        if self.ring.read_by_next {
            self.others[1] = self.receive(NOTHING, self.next(), self.tag + 1)?;
        }
        Ok(())
    }

    /// A chunk as it is sent to be added.
    fn without_zeros(&mut self, offset: usize, len: usize) -> Contents {
        // SAFETY: the chunk lies in the piece, which nobody writes to while a step begins.
        let values = unsafe { std::slice::from_raw_parts(self.own(offset), len) };
        let message = &mut self.scratch.outgoing;
        match sparse::pack(values, message) {
            true => (message.as_mut_ptr(), message.len()),
            false => (self.own(offset), len),
        }
    }

    /// Whether the incoming message is here; notes how many values it has.
    fn has_come(&mut self) -> Result<bool, c_int> {
        let mut come: c_int = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: a request of ours.
        check(unsafe { ffi::MPI_Test(&raw mut self.incoming, &raw mut come, status.as_mut_ptr()) })?;
        if come == 0 {
            return Ok(false);
        }
        let mut count: c_int = 0;
        // SAFETY: MPI has filled the status in, also that of a request which was complete before.
        check(unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_FLOAT, &raw mut count) })?;
        self.received = usize::try_from(count).unwrap_or(0);
        Ok(true)
    }

    /// Puts what the incoming message is about into its place; false if the rank before is no longer there.
    fn take(&mut self, before: &mut Option<Neighbour>) -> Result<bool, Failure> {
        let (offset, len) = self.chunk(self.step + 2);
        // SAFETY: the chunk lies in the piece, which is ours until the travel ends, and no message is under way to it.
        let values = unsafe { std::slice::from_raw_parts_mut(self.own(offset), len) };
        let reduces = self.step < self.reduce_until;
        let Some((before, theirs)) = before.as_mut().zip(self.theirs) else {
            let fits = if reduces { self.add_received(values) } else { self.received == len };
            let wrong = Failure::Length { received: self.received, expected: len };
            return if fits { Ok(true) } else { Err(wrong) };
        };
        let theirs = theirs.wrapping_add(offset);
        let there = if reduces { before.add(theirs, values)? } else { before.copy(theirs, values)? };
        if there {
            self.others[2] = self.send(NOTHING, self.previous(), self.tag + 1)?;
        }
        Ok(there)
    }

    /// Adds what has come; false if it is none of a chunk of this length.
    fn add_received(&self, values: &mut [f32]) -> bool {
        match self.scratch.incoming.get(..self.received) {
            Some(received) if received.len() == values.len() => {
                add(values, received);
                true
            }
            Some(received) if received.len() < values.len() => sparse::add(values, received),
            _ => false,
        }
    }

    fn receive(&self, (place, len): Contents, rank: c_int, tag: c_int) -> Result<ffi::MPI_Request, c_int> {
        let comm = self.ring.comm;
        // SAFETY: a chunk (or scratch, which is as long) stays in place and untouched until the request is complete.
        begin(|request| unsafe {
            ffi::MPI_Irecv(place.cast(), len as c_int, ffi::RSMPI_FLOAT, rank, tag, comm, request)
        })
    }

    fn send(&self, (values, len): Contents, rank: c_int, tag: c_int) -> Result<ffi::MPI_Request, c_int> {
        let comm = self.ring.comm;
        // SAFETY: as in `receive`.
        begin(|request| unsafe {
            ffi::MPI_Isend(values.cast(), len as c_int, ffi::RSMPI_FLOAT, rank, tag, comm, request)
        })
    }

    fn next(&self) -> c_int {
        ((self.ring.rank + 1) % self.ring.world_size) as c_int
    }

    fn previous(&self) -> c_int {
        ((self.ring.rank + self.ring.world_size - 1) % self.ring.world_size) as c_int
    }

    /// Offset in the piece and length of the chunk of the rank that lies `back` ranks before this one.
    fn chunk(&self, back: usize) -> (usize, usize) {
        let Piece { stride, len, limit, .. } = self.piece;
        let Ring { rank, world_size, .. } = self.ring;
        // `back` is at most twice the ring.
        let offset = (rank + 2 * world_size - back) % world_size * stride;
        (offset, limit.saturating_sub(offset).min(len))
    }

    fn own(&self, offset: usize) -> *mut f32 {
        self.piece.first.wrapping_add(offset)
    }
}

impl Drop for Travel {
    fn drop(&mut self) {
        // SAFETY: a constant of an initialised MPI.
        let none = unsafe { ffi::RSMPI_REQUEST_NULL };
        if self.incoming != none || self.others[0] != none {
            // After a failure, of this travel or another, MPI may still write and read here. It happens once, before the job ends
            // with an error, so the memory is not given back.
            std::mem::forget(std::mem::take(&mut self.scratch));
        }
    }
}

/// The request that a call fills in.
fn begin(call: impl FnOnce(*mut ffi::MPI_Request) -> c_int) -> Result<ffi::MPI_Request, c_int> {
    // SAFETY: a constant of an initialised MPI.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    check(call(&raw mut request)).map(|()| request)
}

/// Whether these requests are complete; MPI sets them to null then.
fn done(requests: &mut [ffi::MPI_Request]) -> Result<bool, c_int> {
    let mut done: c_int = 0;
    let count = requests.len() as c_int;
    // SAFETY: requests of ours.
    check(unsafe {
        ffi::MPI_Testall(count, requests.as_mut_ptr(), &raw mut done, ffi::RSMPI_STATUSES_IGNORE)
    })?;
    Ok(done != 0)
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(super) fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
