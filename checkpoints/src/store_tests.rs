//! Whatever happens to a save, the older checkpoints stay and the newest valid one is found.

use std::fs;

use super::*;
use crate::testing::{begin, flip, is_whole, layout, save, slices, state};

const LEN: usize = 40;

struct Run {
    dir: tempfile::TempDir,
    store: Store,
}

fn run_with(steps: &[u64]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    steps.iter().for_each(|&step| drop(save(&mut store, step, 2, LEN)));
    Run { dir, store }
}

impl Run {
    /// As after a crash: nothing of the process is left but its files.
    fn restart(&mut self) {
        self.store.lock = None;
        self.store = Store::open(self.dir.path()).unwrap();
    }

    fn entries(&self) -> Vec<String> {
        let mut names = self.store.names().unwrap();
        names.sort();
        names.retain(|name| name != ".lock");
        names
    }

    fn shard(&self, step: u64) -> PathBuf {
        self.store.step_dir(step).join("rank-00001.safetensors")
    }
}

fn newest(store: &Store) -> u64 {
    let found = store.newest_valid().unwrap();
    let checkpoint = found.checkpoint.unwrap();
    assert!(is_whole(&checkpoint));
    checkpoint.state().step
}

#[test]
fn what_was_saved_is_found_with_its_state() {
    let run = run_with(&[5, 1_234_567_890_123, 10]);
    assert_eq!(run.entries(), ["step-000000005", "step-000000010", "step-1234567890123"]);
    assert_eq!(run.store.list().unwrap(), [5, 10, 1_234_567_890_123]);
    assert_eq!(newest(&run.store), 1_234_567_890_123);
    assert_eq!(run.store.get(10).unwrap().state(), &state(10, 2));
    assert_eq!(run.store.get(10).unwrap().layout(), &layout(LEN));
}

#[test]
fn a_new_run_has_no_checkpoint_and_reading_makes_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("run")).unwrap();
    let found = store.newest_valid().unwrap();
    assert!(found.checkpoint.is_none() && found.rejected.is_empty());
    assert!(!dir.path().join("run").exists());
}

#[test]
fn the_newest_valid_one_wins_and_the_others_are_reported() {
    let mut run = run_with(&[1, 2, 3, 4, 5]);
    flip(&run.shard(5), 300, 1);
    fs::remove_file(run.shard(4)).unwrap();
    fs::remove_file(run.store.step_dir(3).join(MANIFEST_FILE)).unwrap();
    run.restart();
    let found = run.store.newest_valid().unwrap();
    assert_eq!(found.checkpoint.unwrap().state().step, 2);
    let steps: Vec<_> =
        found.rejected.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(steps, ["step-000000005", "step-000000004", "step-000000003"]);
    let reasons: Vec<_> = found.rejected.into_iter().map(|(_, reason)| reason).collect();
    assert!(matches!(
        &reasons[..],
        [Error::BadChecksum { .. }, Error::MissingShard { .. }, Error::MissingManifest { .. }]
    ));
}

/// A link to itself fails as a broken disk does, for the superuser too.
fn make_unreadable(file: &Path) -> PathBuf {
    let aside = file.with_extension("aside");
    fs::rename(file, &aside).unwrap();
    std::os::unix::fs::symlink(file, file).unwrap();
    aside
}

#[test]
fn what_cannot_be_read_is_an_error_and_no_older_one_takes_its_place() {
    let run = run_with(&[10, 20]);
    for file in [run.shard(20), run.store.step_dir(20).join(MANIFEST_FILE)] {
        let aside = make_unreadable(&file);
        let error = run.store.newest_valid_after(&[Duration::ZERO; 2]).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == file), "{error}");
        assert!(error.to_string().ends_with("check the file system and try again"), "{error}");
        fs::rename(&aside, &file).unwrap();
        assert_eq!(newest(&run.store), 20);
    }
    flip(&run.shard(20), 300, 1);
    assert_eq!(newest(&run.store), 10, "a damaged one is passed over");
}

#[test]
fn a_failure_to_read_is_waited_for_and_damage_is_not() {
    let tries = |failures: usize, error: &dyn Fn() -> Error| {
        let mut made = 0;
        let read = patiently(&[Duration::ZERO; 3], || {
            made += 1;
            if made > failures { Ok(made) } else { Err(error()) }
        });
        (read.ok(), made)
    };
    let error = |kind: io::ErrorKind| Error::io("read", Path::new("shard"), kind.into());
    let passes = || error(io::ErrorKind::StaleNetworkFileHandle);
    assert_eq!(tries(2, &passes), (Some(3), 3));
    assert_eq!(tries(9, &passes), (None, 4));
    assert_eq!(tries(9, &|| error(io::ErrorKind::PermissionDenied)), (None, 1));
    assert_eq!(tries(9, &|| Error::MissingShard { path: "shard".into() }), (None, 1));
    assert_eq!(PAUSES.iter().sum::<Duration>(), Duration::from_secs(5));
}

#[test]
fn a_checkpoint_of_a_newer_program_is_not_passed_over() {
    let run = run_with(&[10, 20]);
    let path = run.store.step_dir(20).join(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let (body, _) = text.rsplit_once(",\n  \"checksum\"").unwrap();
    fs::write(&path, crate::manifest::seal(body.replace("\"version\": 2,", "\"version\": 3,"))).unwrap();
    let error = run.store.newest_valid().unwrap_err();
    assert!(matches!(error, Error::WrongVersion { found: 3, .. }), "{error}");
}

#[test]
fn only_names_of_committed_checkpoints_count() {
    let mut run = run_with(&[7]);
    for name in
        ["step-8", "step-0000000099", "step-00000000x", "last", ".tmp-step-000000009", "step--00000009"]
    {
        fs::create_dir(run.store.dir.join(name)).unwrap();
    }
    assert_eq!(run.store.list().unwrap(), [7]);
    fs::rename(run.store.step_dir(7), run.store.step_dir(8)).unwrap();
    assert!(matches!(run.store.get(8), Err(Error::BadManifest { what, .. }) if what == "it is of step 7"));
    run.restart();
    assert!(run.store.newest_valid().unwrap().checkpoint.is_none());
}

#[test]
fn a_crash_at_any_point_of_a_save_leaves_the_older_ones() {
    let cuts = slices(LEN, 2);
    // Before any shard, after the shards, with a manifest but without the rename.
    for crash in 0..3 {
        let mut run = run_with(&[10]);
        let staging = run.store.begin(20).unwrap();
        if crash > 0 {
            let records = crate::testing::write_shards(staging.dir(), 20, &cuts);
            if crash > 1 {
                let manifest = Manifest { state: state(20, 2), layout: layout(LEN), shards: records };
                write_manifest(&staging, &manifest).unwrap();
            }
        }
        run.restart();
        assert_eq!(newest(&run.store), 10);
        assert!(run.store.newest_valid().unwrap().rejected.is_empty());
        assert_eq!(run.store.remove_stale().unwrap(), [run.store.staging_dir(20)]);
        assert_eq!(run.entries(), ["step-000000010"]);
        save(&mut run.store, 20, 2, LEN);
        assert_eq!(newest(&run.store), 20);
    }
}

#[test]
fn leftovers_of_the_same_step_do_not_stop_the_next_save() {
    let mut run = run_with(&[10]);
    drop(begin(&mut run.store, 20, &slices(LEN, 5)));
    run.restart();
    save(&mut run.store, 20, 2, LEN);
    assert_eq!(newest(&run.store), 20);
    assert_eq!(run.entries(), ["step-000000010", "step-000000020"]);
}

#[test]
fn a_save_in_progress_is_not_stale() {
    let mut run = run_with(&[10]);
    let (staging, records) = begin(&mut run.store, 20, &slices(LEN, 2));
    fs::create_dir(run.store.staging_dir(15)).unwrap();
    assert_eq!(run.store.remove_stale().unwrap(), [run.store.staging_dir(15)]);
    run.store.commit(staging, layout(LEN), records, state(20, 2)).unwrap();
    assert_eq!(newest(&run.store), 20);
}

#[test]
fn the_same_step_is_replaced_even_if_it_is_damaged() {
    let mut run = run_with(&[10, 20]);
    flip(&run.shard(20), 300, 1);
    assert_eq!(newest(&run.store), 10);
    save(&mut run.store, 20, 3, LEN);
    assert_eq!(newest(&run.store), 20);
    assert_eq!(run.store.get(20).unwrap().state().world_size, 3);
    assert_eq!(run.entries(), ["step-000000010", "step-000000020"]);
}

#[test]
fn a_crash_between_the_two_renames_of_a_replacement_loses_nothing() {
    let mut run = run_with(&[20]);
    let replaced = run.store.dir.join(".old-step-000000020");
    fs::rename(run.store.step_dir(20), &replaced).unwrap();
    fs::create_dir(run.store.staging_dir(20)).unwrap();
    run.restart();
    run.store.remove_stale().unwrap();
    assert_eq!(newest(&run.store), 20);
    assert_eq!(run.entries(), ["step-000000020"]);
    fs::create_dir(&replaced).unwrap();
    assert_eq!(run.store.remove_stale().unwrap(), [replaced], "the new one is in place");
    assert_eq!(newest(&run.store), 20);
}

#[test]
fn a_save_that_is_not_whole_is_refused_and_its_space_freed() {
    let mut run = run_with(&[10]);
    let cuts = slices(LEN, 2);
    let commit = |store: &mut Store, spoil: &dyn Fn(&Staging, &mut Vec<ShardRecord>, &mut RunState)| {
        let (staging, mut records) = begin(store, 20, &cuts);
        let mut state = state(20, 2);
        spoil(&staging, &mut records, &mut state);
        let error = store.commit(staging, layout(LEN), records, state).unwrap_err();
        assert!(!store.staging_dir(20).exists());
        error
    };
    let error = commit(&mut run.store, &|staging, records, _| {
        fs::remove_file(staging.dir().join(&records[1].file)).unwrap();
    });
    assert!(matches!(error, Error::MissingShard { .. }), "{error}");
    let error = commit(&mut run.store, &|staging, records, _| {
        let file = fs::File::options().write(true).open(staging.dir().join(&records[1].file)).unwrap();
        file.set_len(records[1].bytes - 4).unwrap();
    });
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    let error = commit(&mut run.store, &|_, records, _| drop(records.pop()));
    assert!(matches!(error, Error::Unsavable { .. }), "{error}");
    let error = commit(&mut run.store, &|_, _, state| state.step = 21);
    assert!(matches!(error, Error::Unsavable { .. }), "{error}");
    assert_eq!(run.entries(), ["step-000000010"]);
    assert_eq!(newest(&run.store), 10);
}

#[test]
fn records_come_in_any_order() {
    let mut run = run_with(&[]);
    let (staging, mut records) = begin(&mut run.store, 20, &slices(LEN, 3));
    records.reverse();
    run.store.commit(staging, layout(LEN), records, state(20, 3)).unwrap();
    assert_eq!(newest(&run.store), 20);
}

#[test]
fn an_abandoned_save_is_gone() {
    let mut run = run_with(&[10]);
    let (staging, _) = begin(&mut run.store, 20, &slices(LEN, 2));
    run.store.abandon(staging).unwrap();
    assert_eq!(run.entries(), ["step-000000010"]);
}

fn config(keep_last: usize, keep_every: Option<u64>) -> CheckpointConfig {
    CheckpointConfig { keep_last, keep_every, ..Default::default() }
}

#[test]
fn pruning_keeps_the_last_and_the_multiples() {
    let mut run = run_with(&[5, 10, 15, 20, 25]);
    let removed = run.store.prune(&config(2, Some(10))).unwrap();
    assert_eq!(removed, [run.store.step_dir(5), run.store.step_dir(15)]);
    assert_eq!(run.store.list().unwrap(), [10, 20, 25]);
    assert_eq!(run.store.prune(&config(2, None)).unwrap(), [run.store.step_dir(10)]);
    assert_eq!(run.entries(), ["step-000000020", "step-000000025"]);
    assert!(matches!(run.store.prune(&config(1, None)), Err(Error::Config { .. })));
}

#[test]
fn pruning_never_removes_the_last_two_valid_ones() {
    let mut run = run_with(&[5, 10, 15, 20, 25]);
    flip(&run.shard(25), 300, 1);
    flip(&run.shard(15), 300, 1);
    run.store.prune(&config(2, None)).unwrap();
    assert_eq!(run.store.list().unwrap(), [10, 15, 20, 25], "10 and 20 are the last two valid ones");
    fs::remove_file(run.shard(20)).unwrap();
    assert_eq!(run.store.prune(&config(2, None)).unwrap(), [] as [PathBuf; 0], "only one valid one is left");
    assert_eq!(newest(&run.store), 10);
}

#[test]
fn pruning_reads_each_checkpoint_once_and_a_replaced_one_again() {
    let mut run = run_with(&[5, 10, 15]);
    run.store.prune(&config(2, None)).unwrap();
    assert_eq!(run.store.verified, [10, 15].into());
    save(&mut run.store, 15, 2, LEN);
    flip(&run.shard(15), 300, 1);
    save(&mut run.store, 20, 2, LEN);
    run.store.prune(&config(2, None)).unwrap();
    assert_eq!(run.store.list().unwrap(), [10, 15, 20], "15 is damaged, so 10 must stay");
}

#[test]
fn pruning_keeps_the_best_valid_ones() {
    let mut run = run_with(&[5, 10, 15, 20, 25, 30]);
    for (step, loss) in [(5, 3.0), (10, 1.0), (15, 2.0), (20, 1.5), (30, 4.0)] {
        assert!(run.store.record_metric(step, "loss", loss).unwrap());
    }
    assert!(!run.store.record_metric(7, "loss", 0.0).unwrap(), "no such checkpoint");
    flip(&run.shard(10), 300, 1);
    let config = CheckpointConfig { keep_best: 2, monitor: Some("loss".into()), ..Default::default() };
    let highest = CheckpointConfig { mode: crate::config::Mode::Max, ..config.clone() };
    assert_eq!(run.store.expendable(&highest).unwrap(), [10, 15, 20], "30 and 5 have the highest");
    assert_eq!(run.store.expendable(&config).unwrap(), [5, 10], "10 is damaged, 20 and 15 are next");
    assert_eq!(run.store.list().unwrap().len(), 6, "nothing was removed yet");
    run.store.prune(&config).unwrap();
    run.restart();
    assert_eq!(run.store.list().unwrap(), [15, 20, 25, 30]);
    let other = CheckpointConfig { monitor: Some("accuracy".into()), ..config };
    assert_eq!(run.store.expendable(&other).unwrap(), [15, 20], "without the figure none is best");
}

#[test]
fn a_figure_known_before_the_commit_comes_with_it() {
    let mut run = run_with(&[10]);
    let (staging, records) = begin(&mut run.store, 20, &slices(LEN, 2));
    assert!(run.store.record_metric(20, "loss", 1.5).unwrap());
    run.store.commit(staging, layout(LEN), records, state(20, 2)).unwrap();
    assert_eq!(run.store.get(20).unwrap().metrics().unwrap()["loss"], 1.5);
    assert!(run.store.get(10).unwrap().metrics().unwrap().is_empty());
}

#[test]
fn going_back_does_not_remove_what_was_just_saved() {
    let mut run = run_with(&[10, 20, 30]);
    run.restart();
    save(&mut run.store, 15, 2, LEN);
    assert_eq!(run.store.prune(&config(2, None)).unwrap(), [run.store.step_dir(10)]);
    assert_eq!(run.store.list().unwrap(), [15, 20, 30]);
}

#[test]
fn one_process_writes_and_any_may_read() {
    let mut run = run_with(&[10]);
    let mut other = Store::open(run.dir.path()).unwrap();
    assert_eq!(newest(&other), 10);
    assert!(matches!(other.begin(20), Err(Error::Locked { .. })));
    assert!(matches!(other.prune(&config(2, None)), Err(Error::Locked { .. })));
    assert!(matches!(other.remove_stale(), Err(Error::Locked { .. })));
    run.restart();
    save(&mut other, 20, 2, LEN);
    assert_eq!(newest(&run.store), 20);
}

#[test]
fn a_file_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&file).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
    let mut store = Store::open(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run"), "").unwrap();
    let error = store.begin(1).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
    fs::remove_file(dir.path().join("run")).unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run/checkpoints"), "").unwrap();
    assert!(matches!(Store::open(dir.path().join("run")), Err(Error::NotADirectory { .. })));
}
