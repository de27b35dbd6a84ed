//! What is on its way between the GPUs. The thread that trains looks after it while it waits for it; while that thread is at something
//! else, and perhaps stands still inside libtorch for parameters that never come, the watchdog's does.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::library::Communicator;
use crate::comm::cuda::{CudaRuntime, Event};
use crate::comm::dynamic::GpuError;
use crate::comm::{Alarm, CommError, ExchangeOp};
use crate::exit;
use crate::vitals::{self, Call};

/// A collective on its way.
pub(super) struct Pending {
    pub(super) call: Call,
    pub(super) op: ExchangeOp,
    pub(super) range: Range<usize>,
    pub(super) done: Event,
    /// Behind what had been computed when the compute stream was told to wait for it.
    pub(super) held: Option<Event>,
}

impl Pending {
    /// How long the compute stream had nothing to do but wait for this operation, which is done.
    fn exposed(&self) -> Result<Duration, GpuError> {
        match &self.held {
            Some(held) if held.is_reached()? => self.done.since(held),
            _ => Ok(Duration::ZERO),
        }
    }
}

/// The communicator and what was queued on it. Who has it looks after it, so it is kept for as long as something is waited for.
pub(super) struct UnderWay {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) timeout: Duration,
    pub(super) communicator: Communicator,
    /// In the order in which they were queued.
    pub(super) pending: VecDeque<Pending>,
    /// Events to be used again.
    pub(super) spare: Vec<Event>,
    /// How long the compute stream waited for operations that have been taken out.
    exposed: Duration,
    alarm: Alarm,
    /// The number of the oldest operation that goes on, and since when it is that.
    oldest: Option<(u64, Instant)>,
}

impl UnderWay {
    pub(super) fn new(
        rank: usize,
        world_size: usize,
        timeout: Duration,
        communicator: Communicator,
        alarm: Alarm,
    ) -> Self {
        Self {
            rank,
            world_size,
            timeout,
            communicator,
            pending: VecDeque::new(),
            spare: Vec::new(),
            exposed: Duration::ZERO,
            alarm,
            oldest: None,
        }
    }

    /// How many of the oldest operations have ended.
    ///
    /// # Errors
    /// One of the others has failed, or nothing has moved for too long.
    pub(super) fn look(&mut self) -> Result<usize, CommError> {
        let mut ended = 0;
        while let Some(Pending { call, done, .. }) = self.pending.get(ended) {
            if !done.is_reached().map_err(|error| failed(*call, &error))? {
                self.communicator.health().map_err(|error| failed(*call, &error))?;
                self.check_deadline(*call)?;
                break;
            }
            ended += 1;
        }
        Ok(ended)
    }

    /// Takes out the oldest operations, which have ended; the mark behind the last one of them.
    pub(super) fn take_ended(&mut self, ended: usize) -> Result<Option<Event>, GpuError> {
        let mut last = None;
        for pending in self.pending.drain(..ended) {
            vitals::ended(pending.call);
            self.exposed += pending.exposed()?;
            self.spare.extend(pending.held);
            self.spare.extend(last.replace(pending.done));
        }
        Ok(last)
    }

    /// How long the compute stream has waited since the last call for operations that are taken out.
    pub(super) fn take_exposed(&mut self) -> Duration {
        std::mem::take(&mut self.exposed)
    }

    fn check_deadline(&mut self, oldest: Call) -> Result<(), CommError> {
        let Call { name, number: sequence, bytes } = oldest;
        let same = self.oldest.filter(|(number, _)| *number == sequence);
        let (_, since) = *self.oldest.insert(same.unwrap_or_else(|| (sequence, Instant::now())));
        if since.elapsed() <= self.timeout {
            return Ok(());
        }
        self.alarm.sound(self.rank);
        Err(CommError::Late { rank: self.rank, name, sequence, bytes, allowed: self.timeout.as_secs() })
    }

    /// Begins to count the time anew.
    pub(super) fn restart_clock(&mut self) {
        self.oldest = None;
    }

    /// Ends everything without regard to other ranks, who may never answer; may block all the same.
    pub(super) fn abort(&mut self) {
        self.communicator.abort();
        self.pending.clear();
    }
}

fn failed(call: Call, error: &GpuError) -> CommError {
    CommError::Nccl { name: call.name, sequence: call.number, message: error.to_string() }
}

pub(super) fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process if something has failed that the thread that trains, which is at something else, does not see.
pub(super) fn look_from_watchdog(under_way: &Mutex<UnderWay>, cuda: &CudaRuntime, gpu: usize) {
    // If that thread has it, it looks itself, or is inside a call that is watched.
    let Ok(mut under_way) = under_way.try_lock() else { return };
    // A thread that has chosen no GPU would take memory of the first one. If this fails, so do the calls that follow.
    let _ = cuda.set_device(gpu);
    if let Err(error) = under_way.look() {
        // It is not given back: nothing may be computed with what has not arrived.
        exit::fail(&error.into(), under_way.rank, under_way.world_size);
    }
}
