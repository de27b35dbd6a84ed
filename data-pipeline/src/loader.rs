//! Training batches of one rank, a step at a time, made ahead; the stream depends on the data position alone.

use std::{ops::Range, sync::Arc};

use crate::{
    batch::PackedBatch,
    collate::Collator,
    dataset::{Dataset, Example},
    drop::SampleKey,
    error::{Error, Result},
    order::GlobalOrder,
    plan::BatchPlan,
    pool::BatchPool,
    prefetch::{Next, Prefetch, Stop},
    read_ahead::ReadAhead,
    repack::Repacker,
    schedule::{Schedule, Steps},
};

/// What a rank computes in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepBatch {
    /// First position of the global batch.
    pub position: u64,
    /// The position after it: where a run that has finished this step goes on.
    pub next_position: u64,
    /// The rank's micro-batches, in order; none when the rank has no samples in this step.
    pub micro_batches: Vec<PackedBatch>,
    /// Rows of this rank's part that were left out because they cannot be used.
    pub skipped: u64,
}

/// Everything that decides which batches a rank sees.
pub struct TrainStream {
    /// The rows.
    pub dataset: Arc<dyn Dataset>,
    /// Drops and packs.
    pub collator: Collator,
    /// Order of the rows of `dataset`.
    pub order: GlobalOrder,
    /// Positions of every step.
    pub schedule: Schedule,
    /// The rank's part.
    pub plan: BatchPlan,
}

/// How batches are made; the batches do not depend on it.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Threads that read, tokenise and drop; at least one is started.
    pub threads: usize,
    /// Steps that are held ready or in the making, rounded up to a multiple of the threads: the bound of memory.
    pub prefetch_steps: usize,
    /// Steps, ahead of those in the making, that are announced to the data set (0: none).
    pub read_ahead_steps: usize,
    /// Gives the buffers of batches.
    pub pool: Arc<BatchPool>,
}

/// How far the loader is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderFigures {
    /// Finished steps that wait to be taken; 0 for long means that training waits for data.
    pub ready_steps: usize,
    /// Announced steps that no thread has begun.
    pub announced_steps: usize,
}

/// The steps of a rank from a data position on.
///
/// At debug level, target `data_pipeline::drop`, every sample leaves one line: position, epoch, sample id, number of
/// tokens and dropped indices. These lines are the same, up to order, for every world size.
pub struct TrainLoader {
    items: Prefetch<StepBatch>,
    ahead: ReadAhead,
    repacker: Repacker,
    /// The steps that were not taken yet.
    steps: Steps,
    /// Whether nothing can be taken any more.
    stopped: bool,
}

impl TrainLoader {
    /// Starts the threads. `start_position` is 0, or the next position of the last step of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Plan`] when the order is of another number of rows than the data set; [`Error::Thread`] when the system
    /// gives no thread.
    pub fn spawn(stream: TrainStream, start_position: u64, options: LoaderOptions) -> Result<Self> {
        if stream.order.len() != stream.dataset.len() {
            return Err(Error::Plan(format!(
                "the global order has {} rows but the data set has {}; make it from this data set",
                stream.order.len(),
                stream.dataset.len()
            )));
        }
        let steps = stream.schedule.steps(start_position);
        let dataset = stream.dataset.clone();
        let stream = Arc::new(stream);
        let announced = stream.clone();
        let rows = move |step| {
            let keys = announced.plan.keys(&announced.order, step);
            let mut rows: Vec<u64> = keys.map(|key| key.row).collect();
            // As they will be read.
            rows.sort_unstable();
            rows
        };
        let ahead = ReadAhead::spawn(dataset, steps.clone(), options.read_ahead_steps, rows)?;
        let (tickets, pool) = (ahead.tickets(), options.pool);
        let repacker = Repacker::new(stream.plan.limit(), pool.clone());
        let make = move |step: Range<u64>, stop: &Stop<'_>| {
            tickets.wait();
            stream.make(step, &pool, stop)
        };
        let items = Prefetch::spawn(options.threads, options.prefetch_steps, steps.clone(), make)?;
        Ok(Self { items, ahead, repacker, steps, stopped: false })
    }

    /// The next step, or none after the last one; waits until it is ready.
    ///
    /// # Errors
    /// The first error of reading or tokenising, in the order of the samples; after it, and after the panic of a data
    /// thread, [`Error::LoaderStopped`].
    #[expect(clippy::should_implement_trait, reason = "callers want `?`, and the end is not the usual case")]
    pub fn next(&mut self) -> Result<Option<StepBatch>> {
        match self.next_unless(&|| false)? {
            Next::Item(step) => Ok(Some(step)),
            Next::End => Ok(None),
            Next::Stopped => Err(Error::LoaderStopped),
        }
    }

    /// The same, unless `stop` holds before the step is ready; it is asked several times a second.
    ///
    /// # Errors
    /// As [`next`](Self::next); a loader whose wait was given up is stopped.
    pub fn next_unless(&mut self, stop: &dyn Fn() -> bool) -> Result<Next<StepBatch>> {
        if self.stopped {
            return Err(Error::LoaderStopped);
        }
        if self.steps.next().is_none() {
            return Ok(Next::End);
        }
        let step = match self.items.next_unless(stop) {
            Next::Item(step) => step.map(Next::Item),
            Next::End => Err(Error::LoaderStopped),
            Next::Stopped => {
                self.ahead.leave();
                Ok(Next::Stopped)
            }
        };
        self.stopped = !matches!(step, Ok(Next::Item(_)));
        step
    }

    /// Packs steps as the loader does.
    pub fn repacker(&self) -> &Repacker {
        &self.repacker
    }

    /// How far the loader is ahead at this moment.
    pub fn figures(&self) -> LoaderFigures {
        LoaderFigures { ready_steps: self.items.ready(), announced_steps: self.ahead.announced() }
    }
}

impl TrainStream {
    fn make(&self, step: Range<u64>, pool: &Arc<BatchPool>, stop: &Stop<'_>) -> Result<StepBatch> {
        let keys: Vec<SampleKey> = self.plan.keys(&self.order, step.clone()).collect();
        let asked = keys.len();
        let samples = read(self.dataset.as_ref(), keys.into_iter(), stop)?;
        Ok(StepBatch {
            position: step.start,
            next_position: step.end,
            micro_batches: self.collator.collate_step(&samples, self.plan.limit(), pool)?,
            skipped: (asked - samples.len()) as u64,
        })
    }
}

/// The examples of some samples, in their order, without those that are skipped.
///
/// Rows are read as they lie, so that those of a row group follow each other: where not all groups that are open fit the
/// memory, a group is then decoded once for a step and not for every other row. The error is that of the first bad sample.
pub(crate) fn read(
    dataset: &dyn Dataset,
    keys: impl Iterator<Item = SampleKey>,
    stop: &Stop<'_>,
) -> Result<Vec<(SampleKey, Example)>> {
    let keys: Vec<SampleKey> = keys.collect();
    let mut examples: Vec<Option<Example>> = vec![None; keys.len()];
    let mut failed = None;
    let mut left: Vec<usize> = (0..keys.len()).collect();
    left.sort_by_key(|&index| keys[index].row);
    while !left.is_empty() {
        let (mut done, mut bad) = (0, false);
        let mut rows = left.iter().map(|&index| keys[index].row).take_while(|_| !stop.is_set());
        dataset.each_example(&mut rows, &mut |_, example| {
            let index = left[done];
            done += 1;
            match example {
                Ok(example) => examples[index] = example,
                Err(error) => {
                    failed = Some((index, error));
                    bad = true;
                }
            }
            !bad
        });
        if stop.is_set() {
            return Err(Error::LoaderStopped);
        }
        // Samples before a bad one may be bad as well.
        left.drain(..done);
        left.retain(|&index| failed.as_ref().is_none_or(|&(first, _)| index < first));
    }
    match failed {
        Some((_, error)) => Err(error),
        None => {
            Ok(keys.into_iter().zip(examples).filter_map(|(key, example)| Some((key, example?))).collect())
        }
    }
}
