//! Training batches of one rank, made ahead; the stream depends on the data position alone.

use std::sync::Arc;

use crate::{
    batch::PackedBatch,
    collate::Collator,
    cut::MicroBatchLimit,
    dataset::{Dataset, Example},
    drop::SampleKey,
    error::{Error, Result},
    order::GlobalOrder,
    plan::BatchPlan,
    pool::{BatchPool, PlainMemory},
    prefetch::Prefetch,
};

/// What a rank computes in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepBatch {
    /// First position of the global batch.
    pub position: u64,
    /// The rank's micro-batches, in order.
    pub micro_batches: Vec<PackedBatch>,
}

/// The steps of a rank from a data position on.
///
/// At debug level, target `data_pipeline::drop`, every sample leaves one line: position, epoch, sample id, number of
/// tokens and dropped indices. These lines are the same, up to order, for every world size.
pub struct TrainLoader {
    items: Prefetch<PackedBatch>,
    plan: BatchPlan,
    position: u64,
}

impl TrainLoader {
    /// Starts `threads` threads that hold about `prefetch_steps` steps ready. `start_position` is the first position of
    /// the next global batch: 0, or the position after the last step of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Plan`] when the order is of another number of rows than the data set; [`Error::Thread`] when the system
    /// gives no thread.
    pub fn spawn(
        dataset: Arc<dyn Dataset>,
        collator: Collator,
        order: GlobalOrder,
        plan: BatchPlan,
        start_position: u64,
        threads: usize,
        prefetch_steps: usize,
    ) -> Result<Self> {
        if order.len() != dataset.len() {
            return Err(Error::Plan(format!(
                "the global order has {} rows but the data set has {}; make it from the groups of this data set",
                order.len(),
                dataset.len()
            )));
        }
        let accumulate = plan.accumulate();
        let ahead = prefetch_steps.saturating_mul(accumulate);
        let pool = BatchPool::new(Arc::new(PlainMemory), ahead.saturating_add(threads + accumulate));
        let make = move |item: u64| {
            let step = item / accumulate as u64;
            let first = start_position.wrapping_add(step.wrapping_mul(plan.global_batch() as u64));
            let positions =
                plan.slots((item % accumulate as u64) as usize).map(|slot| first.wrapping_add(slot));
            Some(micro_batch(dataset.as_ref(), &collator, &order, &pool, positions))
        };
        let items = Prefetch::spawn(threads, ahead, Arc::new(make))?;
        Ok(Self { items, plan, position: start_position })
    }

    /// The next step; waits until it is ready.
    ///
    /// # Errors
    /// The first error of reading or tokenising, in the order of the samples; after it, and after the panic of a data
    /// thread, [`Error::LoaderStopped`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the stream has no end, so an iterator's `None` would be a trap"
    )]
    pub fn next(&mut self) -> Result<StepBatch> {
        let mut micro_batches = Vec::with_capacity(self.plan.accumulate());
        for _ in 0..self.plan.accumulate() {
            micro_batches.push(self.items.next().unwrap_or(Err(Error::LoaderStopped))?);
        }
        let position = self.position;
        self.position = position.wrapping_add(self.plan.global_batch() as u64);
        Ok(StepBatch { position, micro_batches })
    }
}

fn micro_batch(
    dataset: &dyn Dataset,
    collator: &Collator,
    order: &GlobalOrder,
    pool: &Arc<BatchPool>,
    positions: impl Iterator<Item = u64>,
) -> Result<PackedBatch> {
    let keys = positions.map(|position| {
        let (epoch, row) = order.row(position);
        SampleKey { position, epoch, row }
    });
    let samples = read(dataset, keys)?;
    // All rows of a micro-batch may have been skipped.
    let limit = MicroBatchLimit { rows: samples.len().max(1), visible_tokens: None };
    Ok(collator.collate_step(&samples, limit, pool)?.pop().unwrap_or_default())
}

/// The examples of some samples, without those that are skipped.
pub(crate) fn read(
    dataset: &dyn Dataset,
    keys: impl Iterator<Item = SampleKey>,
) -> Result<Vec<(SampleKey, Example)>> {
    keys.filter_map(|key| dataset.example(key.row).map(|example| Some((key, example?))).transpose()).collect()
}
