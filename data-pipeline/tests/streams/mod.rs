//! Small data sets in memory, and the streams of batches that are made of them.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]
#![allow(dead_code, reason = "no test uses all helpers")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use data_pipeline::{
    BatchPlan, BatchPool, Collator, Concat, DataConfig, Dataset, Example, KeyedDrops, LoaderOptions,
    MicroBatchLimit, PackedBatch, PlainMemory, Result, StepBatch, Tokenizer, TrainLoader, TrainStream,
};

/// Rows whose tokens are made of their number; it keeps which groups were read and announced.
pub struct Rows {
    groups: Vec<u64>,
    /// Rows that are skipped.
    missing: fn(u64) -> bool,
    name: String,
    pub read: Mutex<BTreeSet<u64>>,
    pub announced: Mutex<BTreeSet<u64>>,
}

impl Rows {
    pub fn new(name: &str, groups: &[u64], missing: fn(u64) -> bool) -> Arc<Self> {
        let (read, announced) = Default::default();
        Arc::new(Self { groups: groups.to_vec(), missing, name: name.into(), read, announced })
    }

    fn group(&self, row: u64) -> u64 {
        let ends = self.groups.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        ends.take_while(|end| *end <= row).count() as u64
    }
}

impl Dataset for Rows {
    fn len(&self) -> u64 {
        self.groups.iter().sum()
    }
    fn groups(&self) -> &[u64] {
        &self.groups
    }
    fn example(&self, row: u64) -> Result<Option<Example>> {
        self.read.lock().unwrap().insert(self.group(row));
        let tokens = (0..1 + row % 5).map(|token| 7 + ((row * 3 + token) % 20) as u32).collect();
        Ok((!(self.missing)(row)).then(|| Example { prompt: vec![], tokens }))
    }
    fn read_ahead(&self, rows: &[u64]) {
        self.announced.lock().unwrap().extend(rows.iter().map(|&row| self.group(row)));
    }
    fn fingerprint(&self) -> &str {
        &self.name
    }
}

pub fn none_missing(_: u64) -> bool {
    false
}

/// Two sources of 22 and 9 rows, two to one.
pub fn mixture() -> Arc<dyn Dataset> {
    let sources = vec![
        ("long".to_owned(), 2.0, Rows::new("long", &[9, 5, 8], none_missing) as Arc<dyn Dataset>),
        ("short".to_owned(), 1.0, Rows::new("short", &[4, 5], |row| row == 3) as Arc<dyn Dataset>),
    ];
    Arc::new(Concat::new(sources).unwrap())
}

pub fn collator() -> Collator {
    Collator::seq2seq(Some(28), 14, Tokenizer::numbers(20).special(), Arc::new(KeyedDrops::new(1))).unwrap()
}

/// A start of a run.
#[derive(Debug, Clone)]
pub struct Run {
    pub data: DataConfig,
    pub global: usize,
    pub per_device: usize,
    pub rank: usize,
    pub world: usize,
    pub start: u64,
}

impl Run {
    /// One rank, batches of `global`, micro-batches of 16.
    pub fn alone(global: usize) -> Self {
        let data = DataConfig { threads: 2, prefetch_steps: 3, ..DataConfig::default() };
        Self { data, global, per_device: 16, rank: 0, world: 1, start: 0 }
    }

    pub fn stream(&self, dataset: &Arc<dyn Dataset>) -> TrainStream {
        let limit = MicroBatchLimit { rows: self.per_device, visible_tokens: None };
        TrainStream {
            dataset: dataset.clone(),
            collator: collator(),
            order: self.data.order(dataset.as_ref(), 1).unwrap(),
            schedule: self.data.schedule(self.global, dataset.len()).unwrap(),
            plan: BatchPlan::new(limit, self.rank, self.world, self.data.canonical_lanes).unwrap(),
        }
    }

    pub fn loader(&self, dataset: &Arc<dyn Dataset>) -> TrainLoader {
        let &DataConfig { threads, prefetch_steps, read_ahead_steps, .. } = &self.data;
        let options = LoaderOptions {
            threads,
            prefetch_steps,
            read_ahead_steps,
            pool: BatchPool::new(Arc::new(PlainMemory), 64),
        };
        TrainLoader::spawn(self.stream(dataset), self.start, options).unwrap()
    }

    /// The first steps, fewer if the run ends.
    pub fn steps(&self, dataset: &Arc<dyn Dataset>, count: usize) -> Vec<StepBatch> {
        let mut loader = self.loader(dataset);
        let steps: Vec<_> = std::iter::from_fn(|| loader.next().unwrap()).take(count).collect();
        if steps.len() < count {
            assert!(loader.next().unwrap().is_none(), "the end stays the end");
        }
        steps
    }

    /// The steps of every rank of a world.
    pub fn world(&self, world: usize, dataset: &Arc<dyn Dataset>, count: usize) -> Vec<Vec<StepBatch>> {
        (0..world).map(|rank| Self { rank, world, ..self.clone() }.steps(dataset, count)).collect()
    }
}

/// Sample id, visible ids, and targets as (place, id, count).
pub type PlainRow = (u64, Vec<i64>, Vec<(i64, i64, i64)>);

/// The rows of a batch as a set that can be compared over ranks.
pub fn rows(batch: &PackedBatch) -> Vec<PlainRow> {
    (0..batch.rows())
        .map(|row| {
            let range = batch.row(row);
            let gaps = range.clone().flat_map(|at| {
                batch.gap(at).map(move |entry| {
                    (batch.positions()[at], batch.tgt_ids()[entry], batch.tgt_counts()[entry])
                })
            });
            (batch.samples()[row].row, batch.tokens()[range.clone()].to_vec(), gaps.collect())
        })
        .collect()
}

/// The rows of steps, sorted: a multiset.
pub fn step_rows<'a>(steps: impl IntoIterator<Item = &'a StepBatch>) -> Vec<PlainRow> {
    let mut all: Vec<_> =
        steps.into_iter().flat_map(|step| step.micro_batches.iter().flat_map(rows)).collect();
    all.sort();
    all
}
