//! The training data of a run as its ranks see it: the order of the samples, the positions of the steps, the batches.

use std::sync::Arc;

use data_pipeline::{
    BatchPlan, BatchPool, Dataset, Error, GlobalOrder, LoaderOptions, PlainMemory, Schedule, TrainLoader,
    TrainStream,
};

use crate::assembly::Assembly;
use crate::config::Experiment;
use crate::telemetry;

/// The training split and what is made of it.
#[derive(Clone, Copy)]
pub(in crate::jobs) struct TrainingData<'a> {
    pub(in crate::jobs) config: &'a Experiment,
    pub(in crate::jobs) assembly: &'a Assembly,
    pub(in crate::jobs) dataset: &'a Arc<dyn Dataset>,
}

impl TrainingData<'_> {
    /// The positions of every step.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub(in crate::jobs) fn schedule(&self) -> Result<Schedule, Error> {
        self.config.data.schedule(self.config.global_batch_size, self.dataset.len())
    }

    /// The sample at every position.
    ///
    /// # Errors
    /// Settings that make no order.
    pub(in crate::jobs) fn order(&self) -> Result<GlobalOrder, Error> {
        self.config.data.order(self.dataset.as_ref(), self.config.seed)
    }

    /// The batches of the rank that `plan` is of, from a position on.
    ///
    /// # Errors
    /// Settings that make no order, or threads that cannot be had.
    pub(in crate::jobs) fn loader(
        &self,
        plan: BatchPlan,
        world_size: usize,
        schedule: Schedule,
        position: u64,
    ) -> Result<TrainLoader, Error> {
        let data = &self.config.data;
        if plan.rank() == 0
            && let Some(warning) = data.memory_warning(self.dataset.as_ref(), world_size)
        {
            telemetry::warn(&warning);
        }
        let stream = TrainStream {
            dataset: Arc::clone(self.dataset),
            collator: self.assembly.collator(self.config)?,
            order: self.order()?,
            schedule,
            plan,
        };
        let options = LoaderOptions {
            threads: data.threads,
            prefetch_steps: data.prefetch_steps,
            read_ahead_steps: data.read_ahead_steps,
            pool: BatchPool::new(Arc::new(PlainMemory), self.buffers(plan, world_size)),
        };
        TrainLoader::spawn(stream, position, options)
    }

    /// Host buffers that are in use at a time: those of the steps that are ready or in the making, and of the one that
    /// is computed.
    fn buffers(&self, plan: BatchPlan, world_size: usize) -> usize {
        let data = &self.config.data;
        let rows = self.config.global_batch_size.div_ceil(world_size);
        let steps = data.prefetch_steps.saturating_add(data.threads).saturating_add(1);
        let limit = plan.limit();
        let tokens = limit.visible_tokens.unwrap_or(usize::MAX);
        let by_tokens = rows.saturating_mul(self.config.row_length()).div_ceil(tokens).min(rows);
        rows.div_ceil(limit.rows).max(by_tokens).saturating_mul(steps)
    }
}
