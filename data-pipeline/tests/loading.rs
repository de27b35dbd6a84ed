//! The stream of batches depends on the data position alone: not on ranks, threads or restarts.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod streams;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Barrier, Mutex},
};

use data_pipeline::{
    BatchPool, DataConfig, Dataset, Error, EvalLoader, EvalPlan, Example, LoaderOptions, PackedBatch, Part,
    PlainMemory, Result, Split, StarConfig, StarDataset, StepBatch, TrainLoader, TrainStream,
};
use streams::{Rows, Run, collator, step_rows};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

fn star(train_size: u64) -> Arc<dyn Dataset> {
    let config = StarConfig { train_size, ..StarConfig::default() };
    Arc::new(StarDataset::new(&config, Split::Train, 1).unwrap())
}

const GLOBAL: u64 = 64;

fn alone() -> Run {
    Run::alone(GLOBAL as usize)
}

fn with_threads(threads: usize, prefetch_steps: usize) -> Run {
    Run { data: DataConfig { threads, prefetch_steps, ..DataConfig::default() }, ..alone() }
}

fn steps(dataset: &Arc<dyn Dataset>, run: Run, count: usize) -> Vec<StepBatch> {
    run.steps(dataset, count)
}

#[test]
fn threads_and_prefetch_change_nothing_and_micro_batches_have_the_plan_s_size() {
    let dataset = star(300);
    let wanted = steps(&dataset, alone(), 6);
    for (index, step) in wanted.iter().enumerate() {
        assert_eq!(step.position, index as u64 * GLOBAL);
        assert_eq!(step.micro_batches.len(), 4);
        assert!(step.micro_batches.iter().all(|batch| batch.rows() == 16));
    }
    for (threads, prefetch) in [(1, 1), (3, 1), (5, 7), (1, 0)] {
        assert_eq!(steps(&dataset, with_threads(threads, prefetch), 6), wanted);
    }
}

#[test]
fn a_restart_continues_the_stream() {
    let dataset = star(300);
    let whole = steps(&dataset, alone(), 10);
    for resumed in [1usize, 4, 7] {
        let start = whole[resumed].position;
        assert_eq!(steps(&dataset, Run { start, ..alone() }, 10 - resumed), whole[resumed..]);
    }
}

#[test]
fn an_epoch_has_every_row_once_and_the_next_drops_anew() {
    let dataset = star(128);
    let whole = steps(&dataset, alone(), 4);
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

/// Keeps which rows were read, in their order; some cannot be.
struct Told {
    inner: Arc<dyn Dataset>,
    bad: Vec<u64>,
    read: Mutex<Vec<u64>>,
}

impl Dataset for Told {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn groups(&self) -> &[u64] {
        self.inner.groups()
    }
    fn parts(&self) -> Vec<Part> {
        self.inner.parts()
    }
    fn example(&self, row: u64) -> Result<Option<Example>> {
        self.read.lock().unwrap().push(row);
        if self.bad.contains(&row) {
            Err(Error::RowOutOfRange { row, len: 0 })
        } else {
            self.inner.example(row)
        }
    }
    fn fingerprint(&self) -> &str {
        "told"
    }
}

fn told(bad: Vec<u64>) -> (Arc<Told>, Run) {
    let data = DataConfig { canonical_lanes: 4, threads: 1, prefetch_steps: 1, ..DataConfig::default() };
    let told = Told { inner: Rows::new("told", &[10; 20], |row| row == 33), bad, read: Mutex::default() };
    (Arc::new(told), Run { data, ..Run::alone(40) })
}

#[test]
fn a_step_reads_a_group_once_and_has_its_samples_in_their_order() {
    let (told, run) = told(Vec::new());
    let dataset: Arc<dyn Dataset> = told.clone();
    let steps = run.steps(&dataset, 5);
    let read = told.read.lock().unwrap();
    for (step, rows) in steps.iter().zip(read.chunks(40)) {
        assert!(rows.is_sorted(), "rows of a group follow each other: {rows:?}");
        // Rows of one length keep the order of their positions when a step is sorted by length.
        let order = run.stream(&dataset).order;
        let mut wanted: Vec<u64> = (step.position..step.next_position)
            .map(|position| order.key(position).row)
            .filter(|&row| row != 33)
            .collect();
        assert!(!wanted.is_sorted(), "the order is no order of rows");
        let samples = step.micro_batches.iter().flat_map(PackedBatch::samples);
        let mut got: Vec<u64> = samples.map(|key| key.row).collect();
        let mut by_length: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for batch in &step.micro_batches {
            for row in 0..batch.rows() {
                by_length.entry(batch.row(row).len()).or_default().push(batch.samples()[row].position);
            }
        }
        assert!(by_length.values().all(|positions| positions.is_sorted()), "{by_length:?}");
        got.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(got, wanted);
    }
}

#[test]
fn of_several_bad_samples_the_first_is_told() {
    let (told, run) = told((0..200).filter(|row| row % 3 == 0).collect());
    let bad = told.bad.clone();
    let dataset: Arc<dyn Dataset> = told;
    let order = run.stream(&dataset).order;
    let first = (0..40).map(|position| order.key(position).row).find(|row| bad.contains(row)).unwrap();
    assert!(first > 3, "some bad row lies before it");
    assert!(matches!(run.loader(&dataset).next(), Err(Error::RowOutOfRange { row, .. }) if row == first));
}

#[test]
fn rows_of_several_sources_are_read_as_they_are_asked_for() {
    let dataset = streams::mixture();
    let rows = [30, 2, 3, 25, 22, 21, 30, 31, 5];
    let mut seen = Vec::new();
    dataset.each_example(&mut rows.into_iter(), &mut |row, example| {
        match (dataset.example(row), &example) {
            (Ok(alone), Ok(together)) => assert_eq!(&alone, together),
            (alone, together) => assert!(alone.is_err() && together.is_err()),
        }
        seen.push(row);
        true
    });
    assert_eq!(seen, rows);
    let mut asked = 0;
    dataset.each_example(&mut rows.into_iter(), &mut |row, _| {
        asked += 1;
        row != 3
    });
    assert_eq!(asked, 3);
}

#[test]
fn an_error_comes_at_its_step_and_stops_the_loader() {
    let dataset: Arc<dyn Dataset> = Arc::new(Broken(star(1000), 200));
    for threads in [1, 4] {
        let data = DataConfig { shuffle: false, threads, prefetch_steps: 2, ..DataConfig::default() };
        let mut loader = Run { data, ..alone() }.loader(&dataset);
        for _ in 0..3 {
            assert!(loader.next().unwrap().is_some());
        }
        assert!(matches!(loader.next(), Err(Error::RowOutOfRange { row: 200, .. })));
        for _ in 0..5 {
            assert!(matches!(loader.next(), Err(Error::LoaderStopped)));
        }
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
        let mut loader = with_threads(4, 8).loader(&dataset);
        loader.next().unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&dataset), 1, "a data thread is left");
    }
}

/// A data set whose reads begin together with the test's wait and hang as long as it holds the lock.
struct Stuck(Arc<dyn Dataset>, Barrier, Mutex<()>);

impl Dataset for Stuck {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn groups(&self) -> &[u64] {
        self.0.groups()
    }
    fn example(&self, row: u64) -> Result<Option<Example>> {
        self.1.wait();
        drop(self.2.lock().unwrap());
        self.0.example(row)
    }
    fn fingerprint(&self) -> &str {
        "stuck"
    }
}

#[test]
fn dropping_a_loader_waits_for_no_read_that_hangs() {
    let stuck = Arc::new(Stuck(star(1000), Barrier::new(2), Mutex::new(())));
    let dataset: Arc<dyn Dataset> = stuck.clone();
    let held = stuck.2.lock().unwrap();
    let loader = with_threads(1, 1).loader(&dataset);
    stuck.1.wait();
    drop(loader);
    assert!(Arc::strong_count(&stuck) > 2, "the read still hangs");
    // Its thread ends when the read does.
    drop(held);
    while Arc::strong_count(&stuck) > 2 {
        std::thread::yield_now();
    }
}

#[test]
fn orders_and_plans_of_another_data_set_are_refused() {
    let dataset = star(100);
    let stream = TrainStream { order: alone().stream(&star(99)).order, ..alone().stream(&dataset) };
    let options = LoaderOptions {
        threads: 1,
        prefetch_steps: 1,
        read_ahead_steps: 0,
        pool: BatchPool::new(Arc::new(PlainMemory), 64),
    };
    assert!(TrainLoader::spawn(stream, 0, options).err().unwrap().is_config());
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
fn evaluation_leaves_out_rows_and_batches_that_cannot_be_used_and_may_be_cut_short() {
    let dataset: Arc<dyn Dataset> =
        Rows::new("holes", &[30, 20], |row| row % 3 == 0 || (16..24).contains(&row));
    let ids = |limit| {
        let plan = EvalPlan::new(50, 8, 0, 1).unwrap().limited_to(limit);
        let batches = EvalLoader::packed(dataset.clone(), collator(), plan, 2, 2).unwrap();
        let mut ids: Vec<u64> =
            batches.flat_map(|batch| batch.unwrap().sample_ids().collect::<Vec<_>>()).collect();
        ids.sort_unstable();
        ids
    };
    let wanted: Vec<u64> = (0..50).filter(|row| row % 3 != 0 && !(16..24).contains(row)).collect();
    assert_eq!(ids(1000), wanted);
    assert_eq!(ids(11), wanted[..7]);
    let plan = EvalPlan::new(50, 8, 2, 7).unwrap();
    assert_eq!(
        EvalLoader::packed(dataset, collator(), plan, 2, 2).unwrap().count(),
        0,
        "all rows of 16..24 are skipped"
    );
}

#[test]
fn figures_tell_how_far_the_loader_is_ahead() {
    let data = DataConfig { max_samples: Some(5 * GLOBAL), prefetch_steps: 5, ..DataConfig::default() };
    let mut loader = Run { data, ..alone() }.loader(&star(500));
    while loader.figures().ready_steps < 5 {
        std::thread::yield_now();
    }
    loader.next().unwrap();
    assert_eq!(loader.figures().ready_steps, 4);
    assert_eq!(loader.figures().announced_steps, 0);
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
            let run = Run { rank, world, ..with_threads(1, 1) };
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
