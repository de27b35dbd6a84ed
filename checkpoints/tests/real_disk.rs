//! Saving against a real disk: a process killed at any moment, a size limit that is hit, a second writer.

#![allow(clippy::unwrap_used, reason = "functions shared by tests are tests too")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use checkpoints::{
    BackgroundCommit, BackgroundWriter, Checkpoint, CheckpointConfig, Commit, Error, Layout, RunState,
    Section, Store, TensorEntry,
};

const LEN: usize = 3 << 19;
const RUN_DIR: &str = "CHECKPOINTS_TEST_RUN_DIR";

fn arena(step: u64) -> Vec<f32> {
    (0..LEN).map(|i| (step * 7 + i as u64 % 1000) as f32).collect()
}

/// As a run of two ranks saves: in the background, and given up if one of them fails.
fn save(mut store: Store, step: u64) -> (Store, Result<(), Error>) {
    let staging = match store.begin(step) {
        Ok(staging) => staging,
        Err(e) => return (store, Err(e)),
    };
    let arena = arena(step);
    let cuts = [0..LEN / 3, LEN / 3..LEN];
    let mut writers: Vec<_> = (0..cuts.len()).map(|rank| BackgroundWriter::new(rank, LEN).unwrap()).collect();
    for (writer, range) in writers.iter_mut().zip(cuts) {
        let sections = [Section { name: "master", range: range.clone(), data: &arena[range] }];
        writer.stage(staging.dir(), &sections).unwrap();
    }
    drop(arena);
    let written: Vec<_> = writers.iter_mut().map(|writer| writer.wait().unwrap()).collect();
    let records = match written.into_iter().map(|written| Ok(written?.record)).collect() {
        Ok(records) => records,
        Err(e) => {
            let abandoned = store.abandon(staging);
            return (store, abandoned.and(Err(e)));
        }
    };
    let tensors = vec![TensorEntry { name: "w".into(), shape: vec![3, 1 << 19], offset: 0, len: LEN as u64 }];
    let commit = Commit {
        staging,
        layout: Layout { len: LEN as u64, tensors },
        records,
        state: RunState { step, world_size: 2, ..Default::default() },
        config: CheckpointConfig::default(),
    };
    let (store, committed) = BackgroundCommit::start(store, commit).unwrap().wait();
    (store, committed.map(drop))
}

fn assert_whole(checkpoint: &Checkpoint) {
    assert_eq!(checkpoint.read_tensor("master", "w").unwrap(), arena(checkpoint.state().step));
}

/// Runs in a process of its own: saves step after step, says so, and stops at the first error.
#[test]
#[ignore = "the child process of the other tests"]
fn child_saves_until_it_fails() {
    let run_dir = std::env::var_os(RUN_DIR).unwrap();
    let mut store = Store::open(&run_dir).unwrap();
    for step in 1.. {
        let saved;
        (store, saved) = save(store, step);
        match saved {
            Ok(()) => eprintln!("saved {step}"),
            Err(e) => {
                eprintln!("failed: {e}");
                let found = store.newest_valid().unwrap();
                assert!(found.rejected.is_empty(), "{:?}", found.rejected);
                found.checkpoint.iter().for_each(assert_whole);
                let step = found.checkpoint.map_or(0, |checkpoint| checkpoint.state().step);
                eprintln!("newest: {step}, {} files left over", leftovers(Path::new(&run_dir)).len());
                return;
            }
        }
    }
}

/// Starts the child above through `sh`, after the given commands.
fn start_child(run_dir: &Path, before: &str) -> Child {
    let script =
        format!("{before} exec \"$0\" --exact child_saves_until_it_fails --ignored --nocapture 2>&1");
    Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(RUN_DIR, run_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What lies beside the committed checkpoints and the lock.
fn leftovers(run_dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(run_dir.join("checkpoints")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with("step-") && name != ".lock");
    names
}

/// The child's lines up to the first that begins with `prefix`, which is returned without it.
fn wait_for(lines: &mut std::io::Lines<BufReader<ChildStdout>>, prefix: &str) -> String {
    let mut found = lines.by_ref().filter_map(|line| line.unwrap().strip_prefix(prefix).map(String::from));
    found.next().unwrap_or_else(|| panic!("the child never said '{prefix}'"))
}

#[test]
fn a_process_killed_at_any_moment_leaves_a_valid_checkpoint_and_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    for delay in (0..60).step_by(6) {
        let mut child = start_child(dir.path(), "");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        wait_for(&mut lines, "saved ");
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();

        let mut store = Store::open(dir.path()).unwrap();
        let found = store.newest_valid().unwrap();
        assert!(found.rejected.is_empty(), "{:?}", found.rejected);
        assert_whole(&found.checkpoint.unwrap());
        store.remove_stale().unwrap();
        assert!(leftovers(dir.path()).is_empty());
    }
}

#[test]
fn while_a_process_writes_another_may_read_but_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start_child(dir.path(), "");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "saved ");
    let mut store = Store::open(dir.path()).unwrap();
    let refused = store.begin(1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    let staging = store.begin(1).unwrap();
    store.abandon(staging).unwrap();
}

/// A limit on the size of files stands for a full disk: a write comes back short, then fails.
#[test]
fn a_save_that_does_not_fit_fails_in_one_sentence_and_leaves_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    save(Store::open(dir.path()).unwrap(), 100).1.unwrap();
    let mut child = start_child(dir.path(), "trap '' XFSZ; ulimit -f 100;");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let sentence = wait_for(&mut lines, "failed: ");
    child.wait().unwrap();
    assert!(sentence.starts_with("no space left to write "), "{sentence}");
    assert!(sentence.contains("rank-00000.safetensors"), "{sentence}");

    let checkpoints = dir.path().join("checkpoints");
    assert!(!Store::open(dir.path()).unwrap().staging_dir(1).exists(), "the space is freed");
    assert_eq!(std::fs::read_dir(checkpoints).unwrap().count(), 2, "the lock and the older checkpoint");
    let found = Store::open(dir.path()).unwrap().newest_valid().unwrap();
    assert_eq!(found.checkpoint.as_ref().unwrap().state().step, 100);
    assert_whole(&found.checkpoint.unwrap());
}

/// Starts the child where commands before it may mount file systems that nobody else sees and that go with it; none if this process
/// may not mount one.
fn start_child_with_mounts(run_dir: &Path, before: &str) -> Option<Child> {
    let probe = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this process may not mount a file system");
        return None;
    }
    let script =
        format!("{before} exec \"$0\" --exact child_saves_until_it_fails --ignored --nocapture 2>&1");
    let mut child = Command::new("unshare");
    child.args(["--mount", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
    Some(child.env(RUN_DIR, run_dir).stdout(Stdio::piped()).spawn().unwrap())
}

/// Starts the child on a small file system in memory.
fn start_child_on_tmpfs(run_dir: &Path, mib: usize, before: &str) -> Option<Child> {
    start_child_with_mounts(run_dir, &format!("mount -t tmpfs -o size={mib}m none \"${RUN_DIR}\"; {before}"))
}

/// As a file that is open on another machine of a network file system does, a file system in a checkpoint keeps it from going.
#[test]
fn an_old_checkpoint_that_cannot_be_removed_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    save(Store::open(dir.path()).unwrap(), 0).1.unwrap();
    let checkpoints = dir.path().join("checkpoints");
    std::fs::create_dir_all(checkpoints.join("step-000000000/busy")).unwrap();
    std::fs::create_dir_all(checkpoints.join(".tmp-removed-step-000000007-0/busy")).unwrap();
    let mount = |name: &str| format!("mount -t tmpfs none \"${RUN_DIR}\"/checkpoints/{name}/busy;");
    let mounts = mount("step-000000000") + &mount(".tmp-removed-step-000000007-0");
    let Some(mut child) = start_child_with_mounts(dir.path(), &mounts) else { return };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "saved 5");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    assert!(!store.list().unwrap().contains(&0), "it is out of sight");
    store.remove_stale().unwrap();
    assert!(leftovers(dir.path()).is_empty(), "and goes once it can");
}

/// Two checkpoints of 6 MiB fit, the third does not.
#[test]
fn a_full_disk_ends_a_save_in_one_sentence_and_what_was_saved_stays() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut child) = start_child_on_tmpfs(dir.path(), 16, "") else { return };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let sentence = wait_for(&mut lines, "failed: ");
    let newest = wait_for(&mut lines, "newest: ");
    child.wait().unwrap();
    assert!(sentence.starts_with("no space left to write "), "{sentence}");
    assert_eq!(newest, "2, 0 files left over");
}

#[test]
fn a_disk_that_becomes_read_only_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let read_only = format!("mkdir \"${RUN_DIR}\"/checkpoints; mount -o remount,ro \"${RUN_DIR}\";");
    let Some(mut child) = start_child_on_tmpfs(dir.path(), 16, &read_only) else { return };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let sentence = wait_for(&mut lines, "failed: ");
    child.wait().unwrap();
    assert!(sentence.contains("is on a read-only file system; choose a run directory"), "{sentence}");
}

/// `/proc` refuses new directories to everybody, the superuser included.
#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    let mut store = Store::open("/proc/ilm-run").unwrap();
    let error = store.remove_stale().unwrap_err();
    assert!(error.to_string().contains("/proc/ilm-run/checkpoints"), "{error}");
    assert!(store.newest_valid().unwrap().checkpoint.is_none(), "reading still works");
}
