//! Every row of a split once, in order, over all ranks; the last batch may be smaller.

use std::{ops::Range, sync::Arc};

use crate::{
    batch::PackedBatch,
    collate::Collator,
    dataset::Dataset,
    drop::SampleKey,
    error::{Error, Result},
    loader::read,
    prefetch::{Next, Prefetch, Stop},
    prompts::PromptBatch,
    read_ahead::ReadAhead,
};

/// Which batches of a split a rank takes: batch b goes to rank `b % world_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalPlan {
    /// Rows of the split.
    rows: u64,
    /// Rows that are evaluated: the first ones.
    end: u64,
    batch_size: u64,
    rank: u64,
    world_size: u64,
}

impl EvalPlan {
    /// For a split of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Plan`] when `batch_size` or `world_size` is zero or `rank` is not below `world_size`.
    pub fn new(rows: u64, batch_size: usize, rank: usize, world_size: usize) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::Plan("per_device_batch_size is 0; use at least 1".into()));
        }
        if rank >= world_size {
            return Err(Error::Plan(format!("rank {rank} does not exist in a world of {world_size} ranks")));
        }
        let (batch_size, rank, world_size) = (batch_size as u64, rank as u64, world_size as u64);
        Ok(Self { rows, end: rows, batch_size, rank, world_size })
    }

    /// Only the first `rows` rows of the split.
    pub fn limited_to(self, rows: u64) -> Self {
        Self { end: self.end.min(rows), ..self }
    }

    /// Batches of this rank.
    pub fn batches(&self) -> u64 {
        let all = self.end.div_ceil(self.batch_size);
        all / self.world_size + u64::from(all % self.world_size > self.rank)
    }

    /// Rows of the rank's batch `index`, which must be below [`batches`](Self::batches).
    fn batch(&self, index: u64) -> Range<u64> {
        let first = (index * self.world_size + self.rank) * self.batch_size;
        first..first.saturating_add(self.batch_size).min(self.end)
    }
}

/// The batches of a rank, made ahead; those whose rows are all skipped are left out. After an error there are no more.
pub struct EvalLoader<B> {
    /// None for a batch without rows.
    items: Prefetch<Option<B>>,
    left: u64,
    ahead: ReadAhead,
}

impl EvalLoader<PackedBatch> {
    /// Batches as in training, with drops that depend on the collator's seed and the row (epoch 0).
    ///
    /// # Errors
    /// [`Error::Plan`] when the plan is for another number of rows; [`Error::Thread`] when the system gives no thread.
    pub fn packed(
        dataset: Arc<dyn Dataset>,
        collator: Collator,
        plan: EvalPlan,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self> {
        Self::spawn(dataset, plan, threads, prefetch, move |samples| collator.collate(samples))
    }
}

impl EvalLoader<PromptBatch> {
    /// Prompts with their targets.
    ///
    /// # Errors
    /// As for [`packed`](EvalLoader::packed).
    pub fn prompts(
        dataset: Arc<dyn Dataset>,
        collator: Collator,
        plan: EvalPlan,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self> {
        Self::spawn(dataset, plan, threads, prefetch, move |samples| collator.collate_prompts(samples))
    }
}

impl<B: Send + 'static> EvalLoader<B> {
    fn spawn(
        dataset: Arc<dyn Dataset>,
        plan: EvalPlan,
        threads: usize,
        prefetch: usize,
        collate: impl Fn(&[(SampleKey, crate::Example)]) -> B + Send + Sync + 'static,
    ) -> Result<Self> {
        if plan.rows != dataset.len() {
            return Err(Error::Plan(format!(
                "the evaluation plan is for {} rows but the data set has {}",
                plan.rows,
                dataset.len()
            )));
        }
        let jobs = 0..plan.batches();
        let ahead = ReadAhead::spawn(dataset.clone(), jobs.clone(), prefetch, move |index| {
            plan.batch(index).collect()
        })?;
        let tickets = ahead.tickets();
        let make = move |index: u64, stop: &Stop<'_>| {
            tickets.wait();
            let keys = plan.batch(index).map(|row| SampleKey { position: row, epoch: 0, row });
            let samples = read(dataset.as_ref(), keys, stop)?;
            Ok((!samples.is_empty()).then(|| collate(&samples)))
        };
        let items = Prefetch::spawn(threads, prefetch, jobs, make)?;
        Ok(Self { items, left: plan.batches(), ahead })
    }
}

impl<B: Send + 'static> EvalLoader<B> {
    /// The next batch, unless `stop` holds before it is ready; it is asked several times a second.
    ///
    /// # Errors
    /// The first error of reading or tokenising; [`Error::LoaderStopped`] after the panic of a data thread.
    pub fn next_unless(&mut self, stop: &dyn Fn() -> bool) -> Result<Next<B>> {
        while self.left > 0 {
            let item = match self.items.next_unless(stop) {
                Next::Item(item) => item,
                Next::End => Err(Error::LoaderStopped),
                Next::Stopped => {
                    self.left = 0;
                    self.ahead.leave();
                    return Ok(Next::Stopped);
                }
            };
            self.left = if item.is_ok() { self.left - 1 } else { 0 };
            if let Some(batch) = item? {
                return Ok(Next::Item(batch));
            }
        }
        Ok(Next::End)
    }
}

impl<B: Send + 'static> Iterator for EvalLoader<B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_unless(&|| false) {
            Ok(Next::Item(batch)) => Some(Ok(batch)),
            Ok(Next::End | Next::Stopped) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_over_all_ranks() {
        for (rows, batch, world) in [(100, 64, 1), (100, 7, 3), (5, 2, 4), (1, 10, 3), (64, 64, 2)] {
            let (mut seen, mut limited) = (Vec::new(), Vec::new());
            for rank in 0..world {
                let plan = EvalPlan::new(rows, batch, rank, world).unwrap();
                for index in 0..plan.batches() {
                    let range = plan.batch(index);
                    assert!(!range.is_empty() && range.end - range.start <= batch as u64);
                    seen.extend(range);
                }
                let few = plan.limited_to(rows / 2);
                limited.extend((0..few.batches()).flat_map(|index| few.batch(index)));
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows), "{rows} rows, batches of {batch}, {world} ranks");
            limited.sort_unstable();
            assert!(limited.into_iter().eq(0..rows / 2));
        }
    }

    #[test]
    fn refuses_plans_that_cannot_be() {
        assert!(EvalPlan::new(10, 0, 0, 1).unwrap_err().is_config());
        assert!(EvalPlan::new(10, 1, 1, 1).unwrap_err().is_config());
        assert!(EvalPlan::new(10, 1, 0, 0).unwrap_err().is_config());
    }
}
