//! Exchanging the flat buffers between GPUs by NCCL, on a stream of its own beside the one that libtorch computes on.
//!
//! NCCL does not compare what ranks call; ranks that went different ways meet the deadline here, or an MPI collective that does
//! compare.

mod library;
mod under_way;

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

pub use self::library::{Communicator, NcclLibrary, UniqueId};
use self::under_way::{Pending, UnderWay, lock, look_from_watchdog};
use super::cuda::{COMPUTE, CudaRuntime, Event, Stream};
use super::dynamic::GpuError;
use super::exchange::Words;
use super::watchdog::Watchdog;
use super::{Alarm, Collectives, CommError, Exchange, ExchangeOp, FlatMemory, abort_process, assert_equal};
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
    under_way: Arc<Mutex<UnderWay>>,
    stream: Stream,
    /// Behind what has been computed at a `begin`.
    ready: Event,
    /// Behind what has been computed at a `finish`.
    computed: Event,
    /// Why the exchange has failed.
    cause: Arc<OnceLock<String>>,
    /// For the calls that may block, and for what is under way while this thread is at something else.
    watchdog: Watchdog,
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
        let (shared, cause) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let alarm = comm.alarm();
        let watchdog = watch(rank, timeout, cuda, &shared, (&cause, &alarm))?;
        let version = nccl.version()?;
        assert_equal(comm, "versions of NCCL", u64::from(version))?;
        let id = share_id(comm, nccl)?;
        let (stream, ready, computed) = (Stream::new(cuda)?, Event::new(cuda)?, Event::new(cuda)?);
        let call = watchdog.begin("connection of GPUs", 0);
        let communicator = Communicator::connect(nccl, id, rank, world_size);
        watchdog.end(call);
        let under_way = UnderWay::new(rank, world_size, timeout, communicator?, alarm);
        let under_way = Arc::clone(shared.get_or_init(|| Arc::new(Mutex::new(under_way))));
        let cuda = Arc::clone(cuda);
        Ok(Self {
            rank,
            world_size,
            memory,
            cuda,
            version,
            under_way,
            stream,
            ready,
            computed,
            cause,
            watchdog,
        })
    }

    /// Queues an operation on a range inside the buffers behind all that has been computed so far, and a mark behind it.
    fn queue(&self, under_way: &mut UnderWay, op: ExchangeOp, words: Words) -> Result<Event, GpuError> {
        let part = words.len / self.world_size;
        let done = under_way.spare.pop().map_or_else(|| Event::new(&self.cuda), Ok)?;
        let stream = self.stream.raw();
        self.ready.record(COMPUTE)?;
        self.ready.hold(stream)?;
        let data = words.first;
        let mine = data.wrapping_add(self.rank * part);
        let communicator = &under_way.communicator;
        // SAFETY: the range is inside the buffer, `mine` is this rank's equal part of it, and whoever connected has promised that
        // the buffer lives and is left alone.
        unsafe {
            match op {
                ExchangeOp::AllReduce => communicator.all_reduce(data, words.len, stream),
                ExchangeOp::ReduceScatter => communicator.reduce_scatter(data, mine, part, stream),
                ExchangeOp::AllGather | ExchangeOp::AllGatherRounded => {
                    communicator.all_gather(mine, data, part, stream)
                }
            }
        }?;
        done.record(stream)?;
        Ok(done)
    }

    /// Waits for everything that was queued; the mark behind the last operation.
    fn drain(&self, under_way: &mut UnderWay) -> Result<Option<Event>, CommError> {
        under_way.restart_clock();
        let mut last = None;
        loop {
            let ended = under_way.look()?;
            if let Some(newer) = under_way.take_ended(ended)? {
                under_way.spare.extend(last.replace(newer));
            }
            if under_way.pending.is_empty() {
                return Ok(last);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Does what may block because of this collective, under its deadline.
    fn watched<T>(&self, call: Call, work: impl FnOnce() -> T) -> T {
        self.watchdog.watch(call);
        let done = work();
        self.watchdog.leave(call);
        done
    }

    /// Ends what is under way after an error in this collective.
    fn give_up(&self, under_way: &mut UnderWay, call: Call, error: CommError) -> CommError {
        // If that does not end either, the watchdog tells of the error. Only the first one matters.
        let _ = self.cause.set(error.to_string());
        self.watched(call, || under_way.abort());
        error
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
        let mut under_way = lock(&self.under_way);
        let queued = self.queue(&mut under_way, op, words);
        self.watchdog.leave(call);
        match queued {
            Ok(done) => {
                under_way.pending.push_back(Pending { call, op, range, done, held: None });
                Ok(())
            }
            Err(error) => {
                let error = CommError::Nccl { name, sequence: call.number, message: error.to_string() };
                Err(self.give_up(&mut under_way, call, error))
            }
        }
    }

    fn finish(&mut self) -> Result<Duration, CommError> {
        let mut under_way = lock(&self.under_way);
        let Some(newest) = under_way.pending.back() else { return Ok(Duration::ZERO) };
        let _waits = vitals::wait_for_others();
        let call = newest.call;
        self.watched(call, || {
            self.computed.record(COMPUTE)?;
            newest.done.hold(COMPUTE)
        })?;
        match self.drain(&mut under_way) {
            Ok(Some(last)) => {
                let exposed = self.exposed(&last)?;
                under_way.spare.push(last);
                Ok(exposed + under_way.take_exposed())
            }
            Ok(None) => Ok(Duration::ZERO),
            Err(error) => Err(self.give_up(&mut under_way, call, error)),
        }
    }

    /// The GPU waits, so this thread does not, nor does it see failures or how long that takes: the watchdog and
    /// [`finish`](Self::finish) do.
    fn wait_for(&mut self, range: Range<usize>) -> Result<Duration, CommError> {
        let touches = |pending: &&mut Pending| {
            let overlaps = pending.range.start < range.end && range.start < pending.range.end;
            overlaps && pending.op.gathers()
        };
        // One stream carries all, so the newest is the last to be done.
        let UnderWay { pending, spare, .. } = &mut *lock(&self.under_way);
        if let Some(newest) = pending.iter_mut().rev().find(touches) {
            let begins = if newest.held.is_none() {
                Some(spare.pop().map_or_else(|| Event::new(&self.cuda), Ok)?)
            } else {
                None
            };
            self.watched(newest.call, || {
                begins.as_ref().map_or(Ok(()), |begins| begins.record(COMPUTE))?;
                newest.done.hold(COMPUTE)
            })?;
            // From the second time on the stream has waited already.
            newest.held = newest.held.take().or(begins);
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
        // Both ways may wait for other ranks: those of one machine disconnect together.
        let call = self.watchdog.begin("disconnection of GPUs", 0);
        let mut under_way = lock(&self.under_way);
        if !under_way.pending.is_empty() {
            // Somebody gave up in the middle.
            under_way.abort();
        }
        under_way.communicator.disconnect();
        self.watchdog.end(call);
    }
}

/// Starts the thread that watches deadlines, and what is under way once there is something.
fn watch(
    rank: usize,
    timeout: Duration,
    cuda: &Arc<CudaRuntime>,
    shared: &Arc<OnceLock<Arc<Mutex<UnderWay>>>>,
    (cause, alarm): (&Arc<OnceLock<String>>, &Alarm),
) -> Result<Watchdog, CommError> {
    let (gpu, cuda, shared) = (cuda.device()?, Arc::clone(cuda), Arc::clone(shared));
    let (cause, alarm) = (Arc::clone(cause), alarm.clone());
    let look = move || {
        if let Some(under_way) = shared.get() {
            look_from_watchdog(under_way, &cuda, gpu);
        }
    };
    let expired = move |message: &str| {
        match cause.get() {
            Some(cause) => complain!("error: {cause} (and ncclCommAbort has not ended the exchange in time)"),
            None => complain!("error: {message}"),
        }
        alarm.sound(rank);
        abort_process(exit::COMMUNICATION);
    };
    Watchdog::start(rank, timeout, look, expired).map_err(|_| CommError::Start)
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
