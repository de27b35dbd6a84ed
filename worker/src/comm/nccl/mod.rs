//! Exchanging the flat buffers between GPUs by NCCL, on a stream of its own beside the one that libtorch computes on.
//!
//! NCCL does not compare what ranks call; ranks that went different ways meet the deadline here, or an MPI collective that does
//! compare.

mod library;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::library::{Communicator, NcclLibrary, UniqueId};
use super::cuda::{COMPUTE, CudaRuntime, Event, Stream};
use super::dynamic::GpuError;
use super::exchange::Words;
use super::watchdog::{Watchdog, report};
use super::{Collectives, CommError, Exchange, ExchangeOp, FlatMemory, abort_process, assert_equal};
use crate::vitals::{self, Call};
use crate::{complain, exit};

/// Between two looks at the GPU: short beside a step, long beside a look.
const POLL: Duration = Duration::from_micros(50);

/// All GPUs of the run, one for each rank.
pub struct NcclExchange {
    rank: usize,
    world_size: usize,
    memory: FlatMemory,
    cuda: Arc<CudaRuntime>,
    /// NCCL's, as one number.
    version: u32,
    communicator: Communicator,
    stream: Stream,
    /// Behind what has been computed at a `begin`.
    ready: Event,
    /// Behind what has been computed at a `finish`.
    computed: Event,
    pending: VecDeque<Pending>,
    /// Events to be used again.
    spare: Vec<Event>,
    timeout: Duration,
    /// For the calls that may block: connecting, queueing, disconnecting.
    watchdog: Watchdog,
}

/// A collective on its way.
struct Pending {
    call: Call,
    op: ExchangeOp,
    range: Range<usize>,
    done: Event,
}

impl NcclExchange {
    /// Connects the GPUs that the ranks have chosen with [`CudaRuntime::set_device`]; all ranks call it together.
    ///
    /// # Safety
    /// `memory` is on this thread's GPU and outlives the exchange, and the promises of [`Exchange`] are kept.
    ///
    /// # Errors
    /// The ranks have different versions of NCCL, or it cannot connect their GPUs.
    pub unsafe fn connect(
        comm: &mut dyn Collectives,
        cuda: &Arc<CudaRuntime>,
        nccl: &Arc<NcclLibrary>,
        memory: FlatMemory,
        timeout: Duration,
    ) -> Result<Self, CommError> {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let expired = move |message: &str| {
            complain!("error: {message}");
            report(rank);
            abort_process(exit::COMMUNICATION);
        };
        let watchdog = Watchdog::start(rank, timeout, || {}, expired).map_err(|_| CommError::Start)?;
        let version = nccl.version()?;
        assert_equal(comm, "versions of NCCL", u64::from(version))?;
        let id = share_id(comm, nccl)?;
        let call = watchdog.begin("connection of GPUs", 0);
        let communicator = Communicator::connect(nccl, id, rank, world_size);
        watchdog.end(call);
        Ok(Self {
            rank,
            world_size,
            memory,
            communicator: communicator?,
            stream: Stream::new(cuda)?,
            ready: Event::new(cuda)?,
            computed: Event::new(cuda)?,
            cuda: Arc::clone(cuda),
            version,
            pending: VecDeque::new(),
            spare: Vec::new(),
            timeout,
            watchdog,
        })
    }

    /// Queues an operation on a range inside the buffers behind all that has been computed so far, and a mark behind it.
    fn queue(&mut self, op: ExchangeOp, words: Words) -> Result<Event, GpuError> {
        let part = words.len / self.world_size;
        let done = self.spare.pop().map_or_else(|| Event::new(&self.cuda), Ok)?;
        let stream = self.stream.raw();
        self.ready.record(COMPUTE)?;
        self.ready.hold(stream)?;
        let data = words.first;
        let mine = data.wrapping_add(self.rank * part);
        // SAFETY: the range is inside the buffer, `mine` is this rank's equal part of it, and whoever connected has promised that
        // the buffer lives and is left alone.
        unsafe {
            match op {
                ExchangeOp::AllReduce => self.communicator.all_reduce(data, words.len, stream),
                ExchangeOp::ReduceScatter => self.communicator.reduce_scatter(data, mine, part, stream),
                ExchangeOp::AllGather | ExchangeOp::AllGatherRounded => {
                    self.communicator.all_gather(mine, data, part, stream)
                }
            }
        }?;
        done.record(stream)?;
        Ok(done)
    }

    /// Sleeps until the GPU has reached the oldest mark, or nothing has moved for too long.
    fn watch(&self, oldest: &Pending, since: Instant) -> Result<(), CommError> {
        let Call { name, number: sequence, bytes } = oldest.call;
        let failed = |error: GpuError| CommError::Nccl { name, sequence, message: error.to_string() };
        while !oldest.done.is_reached().map_err(failed)? {
            self.communicator.health().map_err(failed)?;
            if since.elapsed() > self.timeout {
                let (rank, allowed) = (self.rank, self.timeout.as_secs());
                report(rank);
                return Err(CommError::Late { rank, name, sequence, bytes, allowed });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits for everything that was queued; the mark behind the last operation.
    fn drain(&mut self) -> Result<Option<Event>, CommError> {
        let mut last = None;
        while let Some(oldest) = self.pending.front() {
            self.watch(oldest, Instant::now())?;
            let done = self.pending.pop_front().map(|oldest| {
                vitals::ended(oldest.call);
                oldest.done
            });
            self.spare.extend(std::mem::replace(&mut last, done));
        }
        Ok(last)
    }

    /// How long the compute stream has nothing to do but wait for the last operation.
    fn exposed(&self, last: &Event) -> Result<Duration, GpuError> {
        if self.computed.is_reached()? { last.since(&self.computed) } else { Ok(Duration::ZERO) }
    }
}

impl Exchange for NcclExchange {
    fn begin(&mut self, name: &'static str, op: ExchangeOp, range: Range<usize>) -> Result<(), CommError> {
        let words = self.memory.words(name, op, &range, self.world_size)?;
        if range.is_empty() {
            return Ok(());
        }
        let call = self.watchdog.begin(name, words.len * size_of::<f32>());
        let queued = self.queue(op, words);
        self.watchdog.leave(call);
        match queued {
            Ok(done) => {
                self.pending.push_back(Pending { call, op, range, done });
                Ok(())
            }
            Err(error) => {
                self.communicator.abort();
                Err(CommError::Nccl { name, sequence: call.number, message: error.to_string() })
            }
        }
    }

    fn finish(&mut self) -> Result<Duration, CommError> {
        let Some(newest) = self.pending.back() else { return Ok(Duration::ZERO) };
        let _waits = vitals::wait_for_others();
        self.computed.record(COMPUTE)?;
        newest.done.hold(COMPUTE)?;
        match self.drain() {
            Ok(Some(last)) => {
                let exposed = self.exposed(&last)?;
                self.spare.push(last);
                Ok(exposed)
            }
            Ok(None) => Ok(Duration::ZERO),
            Err(error) => {
                self.communicator.abort();
                Err(error)
            }
        }
    }

    /// The GPU waits, so this thread does not, nor does it see failures: [`finish`](Self::finish) does.
    fn wait_for(&mut self, range: Range<usize>) -> Result<Duration, CommError> {
        let touches = |pending: &&Pending| {
            let overlaps = pending.range.start < range.end && range.start < pending.range.end;
            overlaps && pending.op.gathers()
        };
        // One stream carries all, so the newest is the last to be done.
        if let Some(newest) = self.pending.iter().rev().find(touches) {
            newest.done.hold(COMPUTE)?;
        }
        Ok(Duration::ZERO)
    }

    fn describe(&self) -> String {
        let [major, minor, patch] = [self.version / 10_000, self.version / 100 % 100, self.version % 100];
        format!("NCCL {major}.{minor}.{patch}")
    }
}

impl Drop for NcclExchange {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // Somebody gave up in the middle, and the others may never answer.
            self.communicator.abort();
        }
        // Ranks of one machine disconnect together.
        self.watchdog.begin("disconnection of GPUs", 0);
    }
}

/// Rank 0's new id, on all ranks.
fn share_id(comm: &mut dyn Collectives, nccl: &NcclLibrary) -> Result<UniqueId, CommError> {
    let mine = if comm.rank() == 0 { Some(nccl.unique_id()) } else { None };
    let bytes = match &mine {
        Some(Ok(id)) => id.as_bytes(),
        _ => &[],
    };
    let all = comm.all_gather("NCCL id", bytes)?;
    let nothing = || GpuError::Call { call: "ncclGetUniqueId", message: "rank 0 has none".to_owned() };
    let theirs = || UniqueId::from_bytes(all.first()?);
    Ok(mine.unwrap_or_else(|| theirs().ok_or_else(nothing))?)
}
