//! What is staged is what is saved, whatever becomes of the originals and of the disk.

use std::fs;

use super::*;
use crate::testing::{SECTIONS, bits, is_whole, layout, save, slices, state, values};

/// More than one thread copies at a time.
const LEN: usize = 3 * COPIED_AT_ONCE / 2;
const SMALL: usize = 100;

struct Arenas(Vec<Vec<f32>>);

impl Arenas {
    fn of(step: u64, len: usize) -> Self {
        Self(SECTIONS.iter().map(|name| values(name, step, len)).collect())
    }

    fn sections(&self, range: Range<usize>) -> Vec<Section<'_>> {
        SECTIONS
            .iter()
            .zip(&self.0)
            .map(|(name, arena)| Section { name, range: range.clone(), data: &arena[range.clone()] })
            .collect()
    }
}

fn writers(ranks: usize, len: usize) -> Vec<BackgroundWriter> {
    let elements = |cut: Range<usize>| cut.len() * SECTIONS.len();
    let cuts = slices(len, ranks).into_iter().enumerate();
    cuts.map(|(rank, cut)| BackgroundWriter::new(rank, elements(cut)).unwrap()).collect()
}

/// Begins a save of `step` on all ranks, and changes the state as soon as it is staged.
fn stage_all(store: &mut Store, writers: &mut [BackgroundWriter], step: u64, len: usize) -> Staging {
    let staging = store.begin(step).unwrap();
    let mut arenas = Arenas::of(step, len);
    let cuts = slices(len, writers.len());
    for (writer, cut) in writers.iter_mut().zip(cuts) {
        writer.stage(staging.dir(), &arenas.sections(cut)).unwrap();
    }
    arenas.0.iter_mut().for_each(|arena| arena.fill(f32::NAN));
    staging
}

fn commit(staging: Staging, records: Vec<ShardRecord>, step: u64, len: usize) -> Commit {
    let state = state(step, records.len());
    Commit { staging, layout: layout(len), records, state, config: CheckpointConfig::default() }
}

fn records(writers: &mut [BackgroundWriter]) -> Vec<ShardRecord> {
    writers.iter_mut().map(|writer| writer.wait().unwrap().unwrap().record).collect()
}

#[test]
fn what_was_staged_is_saved_though_training_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let mut writers = writers(3, LEN);
    for step in [10, 20, 30] {
        let staging = stage_all(&mut store, &mut writers, step, LEN);
        let records = records(&mut writers);
        assert!(writers.iter().all(|writer| !writer.is_busy()));
        let pending = BackgroundCommit::start(store, commit(staging, records, step, LEN)).unwrap();
        let committed;
        (store, committed) = pending.wait();
        let committed = committed.unwrap();
        assert_eq!(committed.dir, store.step_dir(step));
        assert_eq!(committed.removed.len(), usize::from(step == 30));
    }
    assert_eq!(store.list().unwrap(), [20, 30]);
    for step in [20, 30] {
        assert!(is_whole(&store.get(step).unwrap()));
    }
}

#[test]
fn the_shard_is_that_of_a_save_without_a_copy_and_the_buffer_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let (direct, staged) = (folder.path().join("direct"), folder.path().join("staged"));
    let mut writer = BackgroundWriter::new(4, 7).unwrap();
    // Larger than announced, smaller, and empty.
    for len in [LEN, 5, 0] {
        [&direct, &staged].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let arenas = Arenas::of(7, len);
        let expected = write_shard(&direct, 4, &arenas.sections(0..len)).unwrap();
        writer.stage(&staged, &arenas.sections(0..len)).unwrap();
        let written = writer.wait().unwrap().unwrap();
        assert_eq!(written.record, expected);
        let [a, b] = [&direct, &staged].map(|dir| fs::read(dir.join(&expected.file)).unwrap());
        assert!(a == b);
        assert_eq!(writer.buffer.len(), LEN * SECTIONS.len(), "kept for the next save");
        [&direct, &staged].into_iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
    }
}

#[test]
fn there_is_at_most_one_save_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = BackgroundWriter::new(0, 8).unwrap();
    assert!(writer.wait().is_none() && !writer.is_busy());
    let arenas = Arenas::of(1, 2);
    writer.stage(dir.path(), &arenas.sections(0..2)).unwrap();
    let refused = writer.stage(dir.path(), &arenas.sections(0..2));
    assert!(matches!(refused, Err(Error::Unsavable { .. })), "{refused:?}");
    writer.wait().unwrap().unwrap();
    assert!(writer.wait().is_none(), "a record is taken once");
}

#[test]
fn a_failure_of_any_rank_is_one_sentence_and_costs_no_older_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    save(&mut store, 10, 2, SMALL);
    let mut writers = writers(2, SMALL);
    let staging = store.begin(20).unwrap();
    // Something is in the way of rank 1.
    fs::create_dir(staging.dir().join("rank-00001.safetensors")).unwrap();
    let arenas = Arenas::of(20, SMALL);
    for (writer, cut) in writers.iter_mut().zip(slices(SMALL, 2)) {
        writer.stage(staging.dir(), &arenas.sections(cut)).unwrap();
    }
    writers[0].wait().unwrap().unwrap();
    let sentence = writers[1].wait().unwrap().unwrap_err().to_string();
    assert!(sentence.contains("rank-00001.safetensors"), "{sentence}");
    store.abandon(staging).unwrap();
    assert!(!store.staging_dir(20).exists());
    assert!(is_whole(&store.newest_valid().unwrap().checkpoint.unwrap()));

    let staging = stage_all(&mut store, &mut writers, 30, SMALL);
    let records = records(&mut writers);
    store = BackgroundCommit::start(store, commit(staging, records, 30, SMALL)).unwrap().wait().0;
    assert_eq!(store.list().unwrap(), [10, 30], "the writers go on after a failure");
}

#[test]
fn a_commit_that_fails_in_the_background_removes_what_was_staged_and_gives_the_store_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    save(&mut store, 10, 2, SMALL);
    let mut writers = writers(2, SMALL);
    let staging = stage_all(&mut store, &mut writers, 20, SMALL);
    let mut records = records(&mut writers);
    records.pop();
    let (store, committed) =
        BackgroundCommit::start(store, commit(staging, records, 20, SMALL)).unwrap().wait();
    assert!(matches!(committed, Err(Error::Unsavable { .. })), "{committed:?}");
    assert!(!store.staging_dir(20).exists());
    assert_eq!(store.list().unwrap(), [10]);
}

#[test]
fn a_checkpoint_is_committed_though_the_old_ones_cannot_be_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    save(&mut store, 10, 2, SMALL);
    let mut writers = writers(2, SMALL);
    let staging = stage_all(&mut store, &mut writers, 20, SMALL);
    let records = records(&mut writers);
    // Refused before anything is looked at.
    let config = CheckpointConfig { keep_last: 0, ..Default::default() };
    assert!(store.prune(&config).is_err());
    let commit = Commit { config, ..commit(staging, records, 20, SMALL) };
    let (store, committed) = BackgroundCommit::start(store, commit).unwrap().wait();
    let committed = committed.unwrap();
    assert_eq!((committed.dir, committed.removed.len()), (store.step_dir(20), 0));
    assert_eq!(store.list().unwrap(), [10, 20]);
}

#[test]
fn a_writer_that_is_dropped_has_finished() {
    let dir = tempfile::tempdir().unwrap();
    let arenas = Arenas::of(1, LEN);
    let mut writer = BackgroundWriter::new(0, 0).unwrap();
    writer.stage(dir.path(), &arenas.sections(0..LEN)).unwrap();
    drop(writer);
    let bytes = fs::read(dir.path().join("rank-00000.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read: Vec<f32> =
        file.tensor("ema").unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(bits(&read) == bits(&arenas.0[3]));
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let error = BackgroundWriter::new(0, usize::MAX / 8).unwrap_err();
    assert!(matches!(error, Error::NoMemory { .. }), "{error}");
}
