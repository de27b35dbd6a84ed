//! Any number of ranks, any restart and any mixture: the same global batches, from one integer.

mod streams;

use std::{collections::BTreeSet, sync::Arc};

use data_pipeline::{
    DataConfig, Dataset, MixtureEntry, PackedBatch, Split, StarConfig, StepBatch, Task, Tokenizer,
    materialise,
};
use streams::{Rows, Run, mixture, none_missing, step_rows};

const WORLDS: [usize; 8] = [1, 2, 3, 4, 5, 7, 8, 12];

fn single() -> Arc<dyn Dataset> {
    Rows::new("single", &[7, 12, 4, 14], |row| row % 9 == 4)
}

fn run(global: usize, data: DataConfig) -> Run {
    Run {
        data: DataConfig { canonical_lanes: 12, threads: 1, prefetch_steps: 1, ..data },
        ..Run::alone(global)
    }
}

/// What a global batch is, over all ranks.
fn merged(ranks: &[Vec<StepBatch>]) -> Vec<(u64, u64, u64, Vec<streams::PlainRow>)> {
    let steps = ranks[0].len();
    assert!(ranks.iter().all(|rank| rank.len() == steps), "all ranks do the same number of steps");
    let step = |index: usize| {
        let parts = || ranks.iter().map(move |rank| &rank[index]);
        let first = &ranks[0][index];
        assert!(
            parts().all(|part| (part.position, part.next_position) == (first.position, first.next_position))
        );
        let skipped = parts().map(|part| part.skipped).sum();
        (first.position, first.next_position, skipped, step_rows(parts()))
    };
    (0..steps).map(step).collect()
}

#[test]
fn every_number_of_ranks_sees_the_same_global_batches() {
    for dataset in [single(), mixture()] {
        for (global, per_device) in [(24, 4), (10, 3), (5, 16), (31, 1), (50, 7)] {
            let run = Run { per_device, ..run(global, DataConfig::default()) };
            let alone = merged(&run.world(1, &dataset, 10));
            assert_eq!(alone.len(), 10);
            for (position, next, skipped, rows) in &alone {
                assert_eq!((next - position, rows.len() as u64 + skipped), (global as u64, global as u64));
            }
            for world in WORLDS {
                assert_eq!(
                    merged(&run.world(world, &dataset, 10)),
                    alone,
                    "{world} ranks, batches of {global}"
                );
            }
        }
    }
}

#[test]
fn micro_batches_hold_no_more_than_their_limit_and_a_rank_may_have_none() {
    let run = Run { per_device: 3, ..run(7, DataConfig::default()) };
    let ranks = run.world(9, &single(), 12);
    let micro_batches = ranks.iter().flatten().flat_map(|step| &step.micro_batches);
    assert!(micro_batches.map(PackedBatch::rows).all(|rows| (1..=3).contains(&rows)));
    assert!(ranks.iter().flatten().any(|step| step.micro_batches.is_empty()));
}

#[test]
fn every_position_resumes_the_uninterrupted_stream_on_any_number_of_ranks() {
    let skip_steps = vec!["3..4".to_owned(), "6..8".to_owned()];
    let cut = DataConfig { skip_steps, max_samples: Some(93), ..DataConfig::default() };
    // 37 and 31 rows: batches of 8 cross the epochs of both, and steps begin at epochs' ends (37 * 8).
    for (dataset, data) in [
        (single(), DataConfig { max_samples: Some(304), ..DataConfig::default() }),
        (mixture(), DataConfig { max_samples: Some(160), ..DataConfig::default() }),
        (single(), cut.clone()),
        (mixture(), cut),
    ] {
        let run = run(8, data);
        let whole = merged(&run.world(1, &dataset, 100));
        assert_eq!(whole.last().unwrap().1 % 8, run.data.max_samples.unwrap() % 8);
        for (index, step) in whole.iter().enumerate() {
            // The second restart within an epoch begins where the first one has come to.
            let world = WORLDS[index % WORLDS.len()];
            let first = Run { start: step.0, ..run.clone() };
            let once = merged(&first.world(world, &dataset, 2));
            assert_eq!(once, whole[index..(index + 2).min(whole.len())], "step {index} on {world} ranks");
            let second = Run { start: once.last().unwrap().1, ..run.clone() };
            let again = merged(&second.world(1 + index % 5, &dataset, 100));
            assert_eq!(again, whole[(index + 2).min(whole.len())..], "after step {index}");
        }
    }
}

#[test]
fn every_position_resumes_even_between_steps() {
    let dataset = single();
    let rows = |start, global, count| {
        let run = Run { start, ..run(global, DataConfig::default()) };
        run.steps(&dataset, count).iter().flat_map(|step| step_rows([step])).collect::<Vec<_>>()
    };
    let one_by_one = rows(0, 1, 120);
    for start in 0..80 {
        let mut wanted = one_by_one.clone();
        let order = run(1, DataConfig::default()).stream(&dataset).order;
        let usable = |until| order.keys(0..until).filter(|key| key.row % 9 != 4).count();
        wanted.truncate(usable(start + 24));
        let mut wanted = wanted.split_off(usable(start));
        wanted.sort();
        let mut found = rows(start, 8, 3);
        found.sort();
        assert_eq!(found, wanted, "from {start}");
    }
}

#[test]
fn epochs_end_the_run_with_a_short_batch_and_every_row_once_an_epoch() {
    let dataset: Arc<dyn Dataset> = Rows::new("all", &[7, 12, 4, 14], none_missing);
    let run = run(10, DataConfig { epochs: Some(2), ..DataConfig::default() });
    for world in [1, 5] {
        let steps = merged(&run.world(world, &dataset, 100));
        assert_eq!(
            steps.iter().map(|step| step.3.len()).collect::<Vec<_>>(),
            [10, 10, 10, 10, 10, 10, 10, 4]
        );
        let mut rows: Vec<u64> = steps.iter().flat_map(|step| step.3.iter().map(|row| row.0)).collect();
        rows.sort_unstable();
        assert!(rows.into_iter().eq((0..37).flat_map(|row| [row, row])));
        assert!(merged(&Run { start: 74, ..run.clone() }.world(world, &dataset, 1)).is_empty());
    }
}

#[test]
fn skipped_steps_are_not_served_and_nothing_else_changes() {
    let dataset = single();
    let all = merged(&run(8, DataConfig::default()).world(1, &dataset, 12));
    let data = DataConfig { skip_steps: vec!["2..5".into(), "9..10".into()], ..DataConfig::default() };
    let cut = merged(&run(8, data).world(3, &dataset, 8));
    let kept: Vec<_> = [0, 1, 5, 6, 7, 8, 10, 11].iter().map(|&step: &usize| all[step].clone()).collect();
    assert_eq!(cut, kept);
}

#[test]
fn a_rank_reads_only_the_groups_of_its_lanes_and_announces_all_it_reads() {
    // Twelve lanes of ten groups.
    let groups = [6; 120];
    let (mut all, mut most) = (BTreeSet::new(), 0);
    for rank in 0..6 {
        let rows = Rows::new("rows", &groups, none_missing);
        let dataset: Arc<dyn Dataset> = rows.clone();
        let run = Run { rank, world: 6, ..run(24, DataConfig { epochs: Some(1), ..DataConfig::default() }) };
        assert_eq!(run.steps(&dataset, 100).len(), 30);
        let read = rows.read.lock().unwrap().clone();
        assert_eq!(read.len(), 20, "rank {rank}");
        assert_eq!(*rows.announced.lock().unwrap(), read);
        most = most.max(read.len());
        all.extend(read);
    }
    assert_eq!((all.len(), most), (120, 20));
}

#[test]
fn a_replayed_step_has_the_keys_of_all_ranks() {
    let dataset = mixture();
    let run = run(13, DataConfig { skip_steps: vec!["1..2".into()], ..DataConfig::default() });
    let stream = run.stream(&dataset);
    for step in merged(&run.world(4, &dataset, 6)) {
        let positions = stream.schedule.step(step.0).unwrap();
        let mut ids: Vec<u64> =
            stream.order.keys(positions).map(|key| key.row).filter(|&row| row != 25).collect();
        ids.sort_unstable();
        assert_eq!(step.3.iter().map(|row| row.0).collect::<Vec<_>>(), ids);
    }
}

#[test]
fn mixtures_are_one_data_set_with_parts() {
    let dataset = mixture();
    assert_eq!((dataset.len(), dataset.groups()), (31, &[9, 5, 8, 4, 5][..]));
    let long = Rows::new("long", &[9, 5, 8], none_missing);
    assert_eq!(dataset.example(21).unwrap(), long.example(21).unwrap());
    assert_eq!(dataset.example(22).unwrap(), long.example(0).unwrap());
    assert_eq!(dataset.example(25).unwrap(), None);
    assert!(dataset.example(31).unwrap_err().to_string().contains("row 31"));
    let parts: Vec<_> = dataset.parts().into_iter().map(|part| (part.name, part.groups)).collect();
    assert_eq!(parts, [("long".to_owned(), 0..3), ("short".to_owned(), 3..5)]);
    let order = DataConfig::default().order(dataset.as_ref(), 1).unwrap();
    let progress = order.progress(30_000);
    assert_eq!((progress[0].samples, progress[1].samples), (20_001, 9_999));
}

#[test]
fn the_sources_of_a_mixture_are_opened_from_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let star = StarConfig { train_size: 30, validation_size: 1, test_size: 1, ..StarConfig::default() };
    let entry = |name: &str, weight| {
        let path = folder.path().join(name);
        materialise(&star, name.len() as u64, &path).unwrap();
        MixtureEntry {
            name: name.into(),
            path: path.join("train-*.parquet").to_str().unwrap().into(),
            weight,
        }
    };
    let mixture = vec![entry("one", 3.0), entry("other", 1.0)];
    let data = DataConfig { task: Task::Star, mixture, ..DataConfig::default() };
    data.validate().unwrap();
    let open = |data: &DataConfig| data.open_split(Split::Train, &Arc::new(Tokenizer::numbers(20)), 1);
    let dataset = open(&data).unwrap();
    assert_eq!((dataset.len(), dataset.groups()), (60, &[30, 30][..]));
    assert_ne!(dataset.example(0).unwrap(), dataset.example(30).unwrap());
    let other = data.mixture[1].path.clone();
    let alone = open(&DataConfig { train: Some(other), mixture: Vec::new(), ..data.clone() }).unwrap();
    assert_eq!(dataset.example(31).unwrap(), alone.example(1).unwrap());

    let mut heavier = data.clone();
    heavier.mixture[0].weight = 4.0;
    assert_ne!(open(&heavier).unwrap().fingerprint(), dataset.fingerprint(), "positions mean other rows");
    let mut twins = data;
    twins.mixture[1].name = "one".into();
    assert!(open(&twins).err().unwrap().to_string().contains("two sources named 'one'"));
}

#[test]
fn settings_of_streams_are_checked() {
    let refused = |data: DataConfig| {
        let star = DataConfig { task: Task::Star, ..data };
        star.validate().unwrap_err().to_string()
    };
    let entry = MixtureEntry { name: "a".into(), path: "a.parquet".into(), weight: 1.0 };
    let mixed = DataConfig { mixture: vec![entry], ..DataConfig::default() };
    assert!(refused(DataConfig { train: Some("b".into()), ..mixed.clone() }).contains("both set"));
    assert!(refused(DataConfig { epochs: Some(2), ..mixed }).contains("data.max_samples"));
    assert!(refused(DataConfig { epochs: Some(0), ..DataConfig::default() }).contains("data.epochs = 0"));
    assert!(
        refused(DataConfig { max_samples: Some(0), ..DataConfig::default() })
            .contains("data.max_samples = 0")
    );
    assert!(refused(DataConfig { skip_steps: vec!["5".into()], ..DataConfig::default() }).contains("'5'"));
}
