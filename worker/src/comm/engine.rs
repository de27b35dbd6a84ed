//! The communication thread of a rank: buckets in the order in which they were begun, a few pieces under way at a time.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use super::agreement::Agreement;
use super::exchange::Words;
use super::mpi::error_text;
use super::neighbour::Neighbour;
use super::ring::{Failure, Piece, Ring, Scratch, TRAVEL_TAGS, Travel};
use super::watchdog::Watchdog;
use super::{CommError, ExchangeOp, FlatMemory};
use crate::vitals::Call;

/// Elements of a piece over all ranks, 1 MiB: it stays in the cache between adding and sending on.
const PIECE: usize = 1 << 18;
/// Most bytes that go to a neighbour at once, with two ranks.
pub(crate) const MOST_PIECE_BYTES: usize = PIECE / 2 * size_of::<f32>();
/// Least elements of a rank's chunk, 16 KiB, where buckets have as many: shorter messages cost more than they carry.
const LEAST_CHUNK: usize = 1 << 12;
/// Pieces under way at a time: while one waits for a neighbour another is added.
const UNDER_WAY: usize = 4;
/// Pause between two looks at MPI while another thread computes, which looks in vain double: a bucket waits for the slowest rank longer
/// than it travels.
const PAUSE: Duration = Duration::from_micros(50);
/// Times that the pause is doubled where a neighbour's memory is read, to 0.8 ms. Longer ones make each rank sleep for the other.
const DOUBLINGS_BESIDE: u32 = 4;
/// The same where messages come, to 3.2 ms: the kernel goes on receiving, and every look takes time from the computation. On 1 Gbit/s
/// a step became a twentieth shorter.
const DOUBLINGS_AFAR: u32 = 6;
/// Looks at MPI without a pause while nobody computes, before the processor is offered to other ranks.
const LOOKS: u32 = 64;

/// What the calling thread asks for.
pub(super) enum Order {
    Begin(Call, ExchangeOp, Range<usize>),
    Wait(Awaited),
}

/// What the calling thread waits for.
pub(super) enum Awaited {
    Everything,
    /// What is gathered to that range.
    Gathered(Range<usize>),
}

impl Awaited {
    fn covers(&self, bucket: &Bucket) -> bool {
        match self {
            Self::Everything => true,
            Self::Gathered(range) => {
                let touches = bucket.range.start < range.end && range.start < bucket.range.end;
                touches && bucket.op.gathers()
            }
        }
    }
}

/// The thread's state.
pub(super) struct Engine {
    ring: Ring,
    /// The rank before, if its memory is read.
    before: Option<Neighbour>,
    memory: FlatMemory,
    watchdog: Arc<Watchdog>,
    /// Set while nobody computes on this rank.
    hurry: Arc<AtomicBool>,
    /// In the order in which they were begun.
    buckets: VecDeque<Bucket>,
    /// Pieces under way, with the number of their bucket.
    travels: VecDeque<(u64, Travel)>,
    /// Memory of travels that have ended, to be used again.
    scratches: Vec<Scratch>,
    pieces: u64,
}

/// A bucket that was begun and is not complete.
struct Bucket {
    call: Call,
    op: ExchangeOp,
    range: Range<usize>,
    words: Words,
    /// Where it begins in the rank before, if that is read.
    theirs: Option<*const f32>,
    /// None once all ranks are known to have begun this bucket.
    agreement: Option<Agreement>,
    /// How much of its [`extent`](Bucket::extent) is under way or done.
    sent: usize,
    /// Pieces under way.
    under_way: usize,
}

// SAFETY: the engine is moved to its thread once, before that runs; its communicator is used by that thread only, MPI gives
// thread support 'multiple', and the memory may be accessed by any thread under the promise of `Exchange`.
unsafe impl Send for Engine {}

impl Engine {
    /// # Safety
    /// `memory` stays valid while the thread runs, its users keep the promise of `Exchange`, and nobody else uses `ring.comm`.
    pub(super) unsafe fn new(
        ring: Ring,
        before: Option<Neighbour>,
        memory: FlatMemory,
        watchdog: Arc<Watchdog>,
        hurry: Arc<AtomicBool>,
    ) -> Self {
        Self {
            ring,
            before,
            memory,
            watchdog,
            hurry,
            buckets: VecDeque::new(),
            travels: VecDeque::new(),
            scratches: Vec::new(),
            pieces: 0,
        }
    }

    /// Works until the other end is dropped and nothing is under way, or something fails.
    pub(super) fn run(mut self, orders: &Receiver<Order>, replies: &Sender<Result<(), CommError>>) {
        let mut awaited: Option<Awaited> = None;
        let mut vain = 0;
        loop {
            let idle = self.buckets.is_empty();
            if let Some(wanted) = &awaited
                && !self.buckets.iter().any(|bucket| wanted.covers(bucket))
            {
                awaited = None;
                if replies.send(Ok(())).is_err() {
                    return;
                }
            }
            let order = self.next_order(orders, vain);
            let worked = match order {
                Ok(Order::Begin(call, op, range)) => self.begin(call, op, range).map(|()| true),
                Ok(Order::Wait(wanted)) => {
                    awaited = Some(wanted);
                    Ok(true)
                }
                Err(TryRecvError::Disconnected) if idle => return self.ring.free(),
                Err(_) => self.progress(),
            };
            match worked {
                Ok(true) => vain = 0,
                Ok(false) => vain += 1,
                Err(error) => {
                    // The other end asks when it next finishes, and all ranks end with an error then.
                    self.buckets.iter().for_each(|bucket| self.watchdog.leave(bucket.call));
                    let _ = replies.send(Err(error));
                    return;
                }
            }
        }
    }

    /// The next order, if there is one before it is time to look at MPI again; that gets rarer with looks in vain.
    fn next_order(&self, orders: &Receiver<Order>, vain: u32) -> Result<Order, TryRecvError> {
        if self.buckets.is_empty() {
            return orders.recv().map_err(|_| TryRecvError::Disconnected);
        }
        if vain > 0 && !self.hurry.load(Ordering::Relaxed) {
            let doublings = if self.before.is_some() { DOUBLINGS_BESIDE } else { DOUBLINGS_AFAR };
            let pause = PAUSE * (1 << (vain - 1).min(doublings));
            return orders.recv_timeout(pause).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            });
        }
        if vain > LOOKS {
            std::thread::yield_now();
        }
        orders.try_recv()
    }

    fn begin(&mut self, call: Call, op: ExchangeOp, range: Range<usize>) -> Result<(), CommError> {
        let Call { name, number, .. } = call;
        let place = |memory: &FlatMemory| memory.words(name, op, &range, self.ring.world_size);
        let words = place(&self.memory)?;
        let theirs = self.before.as_ref().map(|before| place(before.memory())).transpose()?;
        let theirs = theirs.map(|words| words.first.cast_const());
        let agreement = Agreement::begin(self.ring.comm, &format!("{name} {op:?} {range:?} {number}"))
            .map_err(|code| transport(name, number, code))?;
        let agreement = Some(agreement);
        self.buckets.push_back(Bucket { call, op, range, words, theirs, agreement, sent: 0, under_way: 0 });
        Ok(())
    }

    /// One look at everything under way; whether anything has changed.
    fn progress(&mut self) -> Result<bool, CommError> {
        let mut moved = false;
        while self.travels.len() < UNDER_WAY && self.send_piece()? {
            moved = true;
        }
        for _ in 0..self.travels.len() {
            let Some((sequence, mut travel)) = self.travels.pop_front() else { break };
            moved |= travel.advance(&mut self.before).map_err(|failure| failed(sequence, failure))?;
            if travel.has_ended() {
                self.scratches.push(travel.into_scratch());
                self.arrived(sequence);
            } else {
                self.travels.push_back((sequence, travel));
            }
        }
        Ok(moved)
    }

    /// Sends the next piece on its way, if all ranks have begun its bucket.
    fn send_piece(&mut self) -> Result<bool, CommError> {
        let ring = self.ring;
        let Some(bucket) = self.buckets.iter_mut().find(|bucket| bucket.sent < bucket.extent(ring)) else {
            return Ok(false);
        };
        if !bucket.has_agreed(ring)? {
            return Ok(false);
        }
        let theirs = bucket.theirs.map(|theirs| theirs.wrapping_add(bucket.sent));
        let piece = bucket.next_piece(ring);
        // Pieces end in any order, so the ones under way may be many numbers apart; never as many as there are tags.
        let tag = (self.pieces % TRAVEL_TAGS) as c_int;
        let scratch = self.scratches.pop().unwrap_or_default();
        // SAFETY: the bucket lies in memory that nobody touches before it is complete, by the promise of `Exchange`.
        let travel = unsafe { Travel::start(ring, bucket.op, piece, theirs, tag, scratch) };
        let travel = travel.map_err(|code| transport(bucket.call.name, bucket.call.number, code))?;
        self.pieces += 1;
        self.travels.push_back((bucket.call.number, travel));
        Ok(true)
    }

    /// Notes that a piece has ended. Buckets may end in another order than they began.
    fn arrived(&mut self, sequence: u64) {
        let ring = self.ring;
        let Some(index) = self.buckets.iter().position(|bucket| bucket.call.number == sequence) else {
            return;
        };
        let bucket = &mut self.buckets[index];
        bucket.under_way -= 1;
        if bucket.under_way == 0 && bucket.sent == bucket.extent(ring) {
            self.watchdog.end(bucket.call);
            self.buckets.remove(index);
        }
    }
}

impl Bucket {
    /// Words that pieces are cut from: of the whole if chunks are of our choice, else of every rank's part.
    fn extent(&self, ring: Ring) -> usize {
        match self.op {
            ExchangeOp::AllReduce => self.words.len,
            _ => self.words.len / ring.world_size,
        }
    }

    fn has_agreed(&mut self, ring: Ring) -> Result<bool, CommError> {
        let Some(agreement) = &mut self.agreement else { return Ok(true) };
        let Call { name, number: sequence, bytes } = self.call;
        match agreement.answer().map_err(|code| transport(name, sequence, code))? {
            None => Ok(false),
            Some(true) => {
                self.agreement = None;
                Ok(true)
            }
            Some(false) => Err(CommError::Disagreement { rank: ring.rank, name, sequence, bytes }),
        }
    }

    /// Cuts off the next piece.
    fn next_piece(&mut self, ring: Ring) -> Piece {
        let first = self.words.first.wrapping_add(self.sent);
        let rest = self.extent(ring) - self.sent;
        let chunk = (PIECE / ring.world_size).max(LEAST_CHUNK);
        let (taken, piece) = match self.op {
            ExchangeOp::AllReduce => {
                let taken = rest.min(chunk * ring.world_size);
                let len = taken.div_ceil(ring.world_size);
                (taken, Piece { first, stride: len, len, limit: taken })
            }
            _ => {
                let taken = rest.min(chunk);
                (taken, Piece { first, stride: self.extent(ring), len: taken, limit: usize::MAX })
            }
        };
        self.sent += taken;
        self.under_way += 1;
        piece
    }
}

fn failed(sequence: u64, failure: Failure) -> CommError {
    match failure {
        Failure::Mpi(code) => transport("bucket", sequence, code),
        Failure::Length { received, expected } => CommError::Transport {
            name: "bucket",
            sequence,
            message: format!("a message of {received} values came where {expected} were expected"),
        },
        Failure::Memory(error) => CommError::Memory { sequence, error },
    }
}

fn transport(name: &'static str, sequence: u64, code: c_int) -> CommError {
    CommError::Transport { name, sequence, message: error_text(code) }
}
