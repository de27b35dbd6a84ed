//! The stream of batches depends on the data position alone: not on ranks, threads or restarts.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use data_pipeline::{
    BatchPlan, Collator, Dataset, Error, EvalLoader, EvalPlan, Example, GlobalOrder, KeyedDrops, PackedBatch,
    Result, Split, StarConfig, StarDataset, StepBatch, Tokenizer, TrainLoader,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

fn star(train_size: u64) -> Arc<dyn Dataset> {
    let config = StarConfig { train_size, ..StarConfig::default() };
    Arc::new(StarDataset::new(&config, Split::Train, 1).unwrap())
}

fn collator() -> Collator {
    Collator::seq2seq(Some(28), 14, Tokenizer::numbers(20).special(), Arc::new(KeyedDrops::new(1))).unwrap()
}

struct Run {
    rank: usize,
    world: usize,
    per_device: usize,
    threads: usize,
    prefetch: usize,
    start: u64,
}

const ALONE: Run = Run { rank: 0, world: 1, per_device: 16, threads: 2, prefetch: 3, start: 0 };
const GLOBAL: u64 = 64;

fn loader(dataset: &Arc<dyn Dataset>, run: Run) -> TrainLoader {
    let order = GlobalOrder::new(dataset.groups(), 1, 4).unwrap();
    let plan = BatchPlan::new(GLOBAL as usize, run.per_device, run.rank, run.world, 64).unwrap();
    TrainLoader::spawn(dataset.clone(), collator(), order, plan, run.start, run.threads, run.prefetch)
        .unwrap()
}

fn steps(dataset: &Arc<dyn Dataset>, run: Run, count: usize) -> Vec<StepBatch> {
    let mut loader = loader(dataset, run);
    (0..count).map(|_| loader.next().unwrap()).collect()
}

/// Sample id, visible ids, and targets as (place, id, count).
type PlainRow = (u64, Vec<i64>, Vec<(i64, i64, i64)>);

/// The rows of a batch as a set that can be compared over ranks.
fn rows(batch: &PackedBatch) -> Vec<PlainRow> {
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

fn step_rows<'a>(steps: impl IntoIterator<Item = &'a StepBatch>) -> Vec<PlainRow> {
    let mut all: Vec<_> =
        steps.into_iter().flat_map(|step| step.micro_batches.iter().flat_map(rows)).collect();
    all.sort();
    all
}

#[test]
fn every_world_size_sees_the_same_global_batches() {
    let dataset = star(500);
    // Past the end of an epoch (500 rows are 7.8 steps).
    let alone = steps(&dataset, ALONE, 12);
    for world in [2, 4, 8, 64] {
        let ranks: Vec<Vec<StepBatch>> = (0..world)
            .map(|rank| {
                let run = Run { rank, world, per_device: 64 / world / 2_usize.min(64 / world), ..ALONE };
                steps(&dataset, run, 12)
            })
            .collect();
        for step in 0..12 {
            let parts = ranks.iter().map(|rank| &rank[step]);
            assert_eq!(step_rows(parts), step_rows([&alone[step]]), "world {world}, step {step}");
        }
    }
}

#[test]
fn threads_and_prefetch_change_nothing_and_micro_batches_have_the_plan_s_size() {
    let dataset = star(300);
    let wanted = steps(&dataset, ALONE, 6);
    for (index, step) in wanted.iter().enumerate() {
        assert_eq!(step.position, index as u64 * GLOBAL);
        assert_eq!(step.micro_batches.len(), 4);
        assert!(step.micro_batches.iter().all(|batch| batch.rows() == 16));
    }
    for (threads, prefetch) in [(1, 1), (3, 1), (5, 7), (1, 0)] {
        assert_eq!(steps(&dataset, Run { threads, prefetch, ..ALONE }, 6), wanted);
    }
}

#[test]
fn a_restart_continues_the_stream() {
    let dataset = star(300);
    let whole = steps(&dataset, ALONE, 10);
    for resumed in [1usize, 4, 7] {
        let start = whole[resumed].position;
        assert_eq!(steps(&dataset, Run { start, ..ALONE }, 10 - resumed), whole[resumed..]);
    }
}

#[test]
fn an_epoch_has_every_row_once_and_the_next_drops_anew() {
    let dataset = star(128);
    let whole = steps(&dataset, ALONE, 4);
    let (first, second) = (step_rows(&whole[..2]), step_rows(&whole[2..]));
    let ids = |rows: &[(u64, Vec<i64>, _)]| rows.iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(ids(&first), (0..128).collect::<Vec<_>>());
    assert_eq!(ids(&second), ids(&first));
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(same < 64, "{same} of 128 rows were dropped alike");
}

/// A data set whose rows from some row on cannot be read.
struct Broken(Arc<dyn Dataset>, u64);

impl Dataset for Broken {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn groups(&self) -> &[u64] {
        self.0.groups()
    }
    fn example(&self, row: u64) -> Result<Option<Example>> {
        if row >= self.1 { Err(Error::RowOutOfRange { row, len: self.1 }) } else { self.0.example(row) }
    }
    fn fingerprint(&self) -> &str {
        "broken"
    }
}

#[test]
fn an_error_comes_at_its_step_and_stops_the_loader() {
    let dataset: Arc<dyn Dataset> = Arc::new(Broken(star(1000), 200));
    for threads in [1, 4] {
        let order = GlobalOrder::sequential(dataset.groups()).unwrap();
        let plan = BatchPlan::new(64, 16, 0, 1, 64).unwrap();
        let mut loader = TrainLoader::spawn(dataset.clone(), collator(), order, plan, 0, threads, 2).unwrap();
        for _ in 0..3 {
            loader.next().unwrap();
        }
        assert!(matches!(loader.next(), Err(Error::RowOutOfRange { row: 200, .. })));
        assert!(loader.next().is_err());
    }
    let plan = EvalPlan::new(1000, 64, 0, 1).unwrap();
    let results: Vec<bool> =
        EvalLoader::packed(dataset, collator(), plan, 2, 2).unwrap().map(|batch| batch.is_ok()).collect();
    assert_eq!(results, [true, true, true, false]);
}

#[test]
fn dropping_a_loader_early_ends_its_threads() {
    let dataset = star(1000);
    for _ in 0..20 {
        let mut loader = loader(&dataset, Run { threads: 4, prefetch: 8, ..ALONE });
        loader.next().unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&dataset), 1, "a data thread is left");
    }
}

#[test]
fn orders_and_plans_of_another_data_set_are_refused() {
    let dataset = star(100);
    let order = GlobalOrder::sequential(&[99]).unwrap();
    let plan = BatchPlan::new(64, 16, 0, 1, 64).unwrap();
    assert!(TrainLoader::spawn(dataset.clone(), collator(), order, plan, 0, 1, 1).err().unwrap().is_config());
    let plan = EvalPlan::new(99, 10, 0, 1).unwrap();
    assert!(EvalLoader::packed(dataset, collator(), plan, 1, 1).err().unwrap().is_config());
}

#[test]
fn evaluation_has_every_row_once_in_order_with_the_same_drops_for_every_world() {
    let dataset = star(100);
    let load = |rank, world| {
        let plan = EvalPlan::new(100, 16, rank, world).unwrap();
        let batches = EvalLoader::packed(dataset.clone(), collator(), plan, 2, 2).unwrap();
        batches.map(Result::unwrap).collect::<Vec<_>>()
    };
    let alone = load(0, 1);
    assert_eq!(alone.iter().map(PackedBatch::rows).collect::<Vec<_>>(), [16, 16, 16, 16, 16, 16, 4]);
    let ranks = [load(0, 3), load(1, 3), load(2, 3)];
    for (index, batch) in alone.iter().enumerate() {
        assert_eq!(ranks[index % 3][index / 3], *batch);
        let mut ids: Vec<u64> = batch.sample_ids().collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(index as u64 * 16..(index as u64 * 16 + 16).min(100)));
    }
}

#[test]
fn prompts_come_in_row_order_with_whole_targets() {
    let dataset = star(10);
    let plan = EvalPlan::new(10, 4, 0, 1).unwrap();
    let batches: Vec<_> =
        EvalLoader::prompts(dataset.clone(), collator(), plan, 2, 2).unwrap().map(Result::unwrap).collect();
    assert_eq!(
        batches.iter().flat_map(|batch| batch.sample_ids.clone()).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    for batch in &batches {
        for row in 0..batch.rows() {
            let example = dataset.example(batch.sample_ids[row]).unwrap().unwrap();
            let range = batch.row(row);
            let prompt = example.prompt.iter().map(|&id| i64::from(id));
            assert!(batch.tokens[range].iter().copied().eq([1].into_iter().chain(prompt).chain([4])));
            assert!(batch.target(row).iter().copied().eq(example.tokens.iter().map(|&id| i64::from(id))));
        }
    }
}

/// Keeps the drop lines.
struct Lines(Arc<Mutex<BTreeSet<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "data_pipeline::drop" && *metadata.level() <= Level::DEBUG
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        assert!(self.0.lock().unwrap().insert(line.0), "a line came twice");
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn drop_lines_are_equal_for_every_world_size() {
    let dataset = star(128);
    let lines = Arc::new(Mutex::new(BTreeSet::new()));
    // The data threads log, so the subscriber must be global; this test binary runs each test in its own process.
    tracing::subscriber::set_global_default(Lines(lines.clone())).unwrap();
    let of_world = |world: usize| {
        for rank in 0..world {
            let run = Run { rank, world, per_device: 16, threads: 1, prefetch: 1, start: 0 };
            steps(&dataset, run, 2);
        }
        let all = std::mem::take(&mut *lines.lock().unwrap());
        // Work ahead logs too; the first two steps are positions 0..128.
        let position = |line: &String| {
            line.split_once("position=").unwrap().1.split_once(' ').unwrap().0.parse::<u64>().unwrap()
        };
        all.into_iter().filter(|line| position(line) < 128).collect::<BTreeSet<_>>()
    };
    let alone = of_world(1);
    assert_eq!(alone.len(), 128);
    assert!(
        alone
            .iter()
            .all(|line| line.contains("epoch=") && line.contains("sample=") && line.contains("tokens=8 "))
    );
    assert!(alone.iter().any(|line| line.contains("dropped=[0, ")));
    assert_eq!(of_world(4), alone);
}
