//! From Parquet files of token ids to packed batches, in the global order of a training run.

use std::{hint::black_box, path::Path, sync::Arc};

use data_pipeline::{
    BatchPool, Collator, DataConfig, Dataset, GlobalOrder, KeyedDrops, MicroBatchLimit, PlainMemory, Split,
};

use crate::{
    report::{Outcome, Runs},
    tokenizer_file,
};

const STEP: u64 = 128;
const ROWS: usize = 32;

/// Everything a rank's data threads share.
pub struct Stream {
    dataset: Arc<dyn Dataset>,
    order: GlobalOrder,
    collator: Collator,
    pool: Arc<BatchPool>,
}

impl Stream {
    pub fn open(data: &Path) -> Outcome<Self> {
        let config = DataConfig {
            train: Some(
                data.join("owt-gpt2-1024-mini/train-*.parquet").to_string_lossy().into_owned().into(),
            ),
            tokenizer: Some(tokenizer_file(data, "gpt2")),
            ..DataConfig::default()
        };
        let tokenizer = Arc::new(config.open_tokenizer()?);
        let dataset = config.open_split(Split::Train, &tokenizer, 1)?;
        Ok(Self {
            order: config.order(dataset.as_ref(), 1)?,
            collator: Collator::language(1024, tokenizer.special(), Arc::new(KeyedDrops::new(1)))?,
            pool: BatchPool::new(Arc::new(PlainMemory), 16),
            dataset,
        })
    }

    /// Steps of an epoch.
    pub fn steps(&self) -> u64 {
        self.order.len() / STEP
    }

    /// Makes the batches of a step; returns its source tokens.
    pub fn step(&self, step: u64) -> Outcome<u64> {
        let mut samples = Vec::with_capacity(STEP as usize);
        for position in step * STEP..(step + 1) * STEP {
            let key = self.order.key(position);
            if let Some(example) = self.dataset.example(key.row)? {
                samples.push((key, example));
            }
        }
        let limit = MicroBatchLimit { rows: ROWS, visible_tokens: None };
        black_box(self.collator.collate_step(&samples, limit, &self.pool)?);
        Ok(samples.iter().map(|(_, example)| example.tokens.len() as u64).sum())
    }
}

/// A run is the first epoch of a set that nobody has read before, so every row group is decoded in it.
pub fn run(data: &Path, runs: &Runs) -> Outcome<()> {
    for &threads in &runs.threads {
        let streams = (0..=runs.count).map(|_| Stream::open(data)).collect::<Outcome<Vec<_>>>()?;
        let alone = Runs { threads: vec![threads], count: runs.count };
        alone.measure("parquet", "owt-gpt2-1024", |run, thread, threads| {
            let stream = &streams[run];
            (thread as u64..stream.steps()).step_by(threads).map(|step| stream.step(step)).sum()
        })?;
    }
    Ok(())
}
