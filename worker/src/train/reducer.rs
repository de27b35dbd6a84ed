//! The exchange of a training step: gradients bucket by bucket while backward runs, updated parameters bucket by bucket after.

use std::ops::Range;
use std::time::Duration;

use ilm_model::{Arena, Traffic};

use super::Division;
use crate::comm::{BucketPlan, Collectives, CommError, Exchange, ExchangeOp, FlatMemory};
use crate::config::TrainerConfig;
use crate::device::RankDevice;

/// Exchanges gradients and parameters of one arena.
pub struct Reducer {
    exchange: Box<dyn Exchange>,
    plan: BucketPlan,
    /// Whether a rank updates its own parts only.
    sharded: bool,
    /// Whether a bucket's gradients travel while backward computes the next ones.
    overlaps: bool,
    /// Gradients from here on are final.
    final_from: usize,
    /// Buckets whose gradients are on their way.
    begun: usize,
    /// Where the parameters begin that other ranks need rounded only, if any do.
    rounded_from: usize,
    /// Whether parameters may be on their way.
    gathers: bool,
    /// Whether parameters from `rounded_from` on may be old on other ranks than those that update them.
    old: bool,
    failed: Option<CommError>,
    waited: Duration,
}

impl Reducer {
    /// The exchange of `arena`'s buffers over the ranks of `comm`.
    ///
    /// # Errors
    /// If the transport fails.
    ///
    /// # Safety
    /// The arena is on `device` and outlives the reducer. Nobody touches gradients between [`is_final`](Self::is_final) and
    /// [`finish_gradients`](Self::finish_gradients), nor parameters, rounded ones included, of other windows than the next between
    /// [`begin_gather`](Self::begin_gather) and [`finish_gather`](Self::finish_gather), unless a forward pass of
    /// [`train_step`](super::train_step) has waited for them.
    pub unsafe fn connect(
        device: &RankDevice,
        comm: &mut dyn Collectives,
        trainer: &TrainerConfig,
        arena: &Arena,
    ) -> anyhow::Result<Self> {
        let memory = FlatMemory::of(arena.flat_params(), arena.flat_grads(), arena.flat_rounded());
        let timeout = Duration::from_secs(trainer.collective_timeout_secs);
        // SAFETY: the caller's promise; the arena is on the device.
        let exchange = unsafe { device.exchange(comm, memory, timeout)? };
        Ok(Self::new(exchange, trainer, arena, comm.world_size()))
    }

    /// The exchange of `arena`'s buffers as the settings say.
    pub fn new(
        exchange: Box<dyn Exchange>,
        trainer: &TrainerConfig,
        arena: &Arena,
        world_size: usize,
    ) -> Self {
        Self {
            exchange,
            plan: bucket_plan(trainer, arena, world_size),
            sharded: trainer.shards_optimizer(world_size),
            rounded_from: arena.rounded_from().unwrap_or(usize::MAX),
            overlaps: trainer.overlap_reduction,
            final_from: usize::MAX,
            begun: 0,
            gathers: false,
            old: false,
            failed: None,
            waited: Duration::ZERO,
        }
    }

    /// Where updates may be cut, in the order in which the parts should be updated: that in which a forward pass needs them.
    pub fn windows(&self) -> Vec<Range<usize>> {
        let mut windows = [self.plan.shared(), self.plan.buckets()].concat();
        windows.sort_by_key(|window| (window.start, window.end));
        windows
    }

    /// Tells of gradients of the arena that are final on this rank: those that follow what was told of before, downwards.
    pub fn is_final(&mut self, range: Range<usize>) {
        self.final_from = range.start;
        if self.overlaps {
            self.begin_final();
        }
    }

    /// Begins what is final and not yet begun.
    fn begin_final(&mut self) {
        let reduction = if self.sharded { ExchangeOp::ReduceScatter } else { ExchangeOp::AllReduce };
        while let Some(bucket) = self.plan.buckets().get(self.begun).cloned() {
            if bucket.start < self.final_from || self.failed.is_some() {
                return;
            }
            self.failed = self.exchange.begin("gradients", reduction, bucket).err();
            self.begun += 1;
        }
    }

    /// Begins what has not begun yet and waits until the gradients of the parts that this rank updates are sums over all ranks.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn finish_gradients(&mut self) -> Result<(), CommError> {
        self.final_from = 0;
        self.begin_final();
        (self.begun, self.final_from) = (0, usize::MAX);
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for shared in self.plan.shared() {
            self.exchange.begin("gradients", ExchangeOp::AllReduce, shared.clone())?;
        }
        self.waited += self.exchange.finish()?;
        self.gathers = false;
        Ok(())
    }

    /// Sends the updated parameters of a window to all ranks, if each has updated its own part of it only: rounded if that is all
    /// that they need for the next step.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn begin_gather(&mut self, window: Range<usize>) -> Result<(), CommError> {
        let is_rounded = window.start >= self.rounded_from;
        self.old |= is_rounded && self.sharded;
        self.gather(if is_rounded { ExchangeOp::AllGatherRounded } else { ExchangeOp::AllGather }, window)
    }

    fn gather(&mut self, op: ExchangeOp, window: Range<usize>) -> Result<(), CommError> {
        if !self.sharded || self.plan.shared().contains(&window) {
            return Ok(());
        }
        self.gathers = true;
        self.exchange.begin("parameters", op, window)
    }

    /// Gives all ranks the parameters themselves of every window, each from the rank that updates it.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn share_parameters(&mut self) -> Result<(), CommError> {
        self.finish_gather()?;
        self.share_from(0)
    }

    fn share_from(&mut self, start: usize) -> Result<(), CommError> {
        let waited = self.waited;
        for window in self.windows().into_iter().filter(|window| window.start >= start) {
            self.gather(ExchangeOp::AllGather, window)?;
        }
        self.old = false;
        self.finish_gather()?;
        // What is looked at between steps is no part of one.
        self.waited = waited;
        Ok(())
    }

    /// Waits until this rank has the parameters of a range of the arena. A failure shows when gradients are exchanged.
    fn wait_for_parameters(&mut self, range: Range<usize>) {
        if self.gathers && self.failed.is_none() {
            match self.exchange.wait_for(range) {
                Ok(stood_still) => self.waited += stood_still,
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// Whether the next forward pass may begin before all parameters have arrived.
    pub fn overlaps(&self) -> bool {
        self.overlaps
    }

    /// Waits until this rank has all that the next step needs of the parameters.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn finish_gather(&mut self) -> Result<(), CommError> {
        if std::mem::take(&mut self.gathers) {
            self.waited += self.exchange.finish()?;
        }
        Ok(())
    }

    /// Gets this rank all parameters, also those that it had rounded only. All ranks call it together.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn complete_parameters(&mut self) -> Result<(), CommError> {
        self.finish_gather()?;
        if self.old { self.share_from(self.rounded_from) } else { Ok(()) }
    }

    /// What gradients and parameters travel by, for the reader of a log.
    pub fn describe(&self) -> String {
        self.exchange.describe()
    }

    /// How long this rank stood still for others since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

/// A micro-batch as the exchange sees it.
pub(super) struct Passing<'a> {
    /// Exchanges what is ready.
    pub(super) reducer: &'a mut Reducer,
    /// Whether gradients are final behind it.
    pub(super) is_last: bool,
}

impl Traffic for Passing<'_> {
    fn needs(&mut self, range: Range<usize>) {
        self.reducer.wait_for_parameters(range);
    }

    fn is_final(&mut self, range: Range<usize>) {
        if self.is_last {
            self.reducer.is_final(range);
        }
    }
}

/// The elements that a rank updates, counts and writes with these settings.
pub fn division(trainer: &TrainerConfig, arena: &Arena, rank: usize, world_size: usize) -> Division {
    let len = arena.layout().len();
    if trainer.shards_optimizer(world_size) {
        Division::sharded(len, &bucket_plan(trainer, arena, world_size), rank)
    } else {
        Division::replicated(len, rank, world_size)
    }
}

fn bucket_plan(trainer: &TrainerConfig, arena: &Arena, world_size: usize) -> BucketPlan {
    const ELEMENTS_PER_MIB: usize = 1 << 18;
    let bucket = trainer.reduce_bucket_mib.saturating_mul(ELEMENTS_PER_MIB);
    BucketPlan::new(arena.flat_grads().capacity(), arena.rounded_from().as_slice(), bucket, world_size)
}

#[cfg(test)]
#[path = "reducer_tests.rs"]
mod tests;
