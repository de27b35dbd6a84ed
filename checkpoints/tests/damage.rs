//! Damage of every kind to the files of a checkpoint is noticed and named, and the checkpoint before it is used.

#![allow(clippy::unwrap_used, reason = "functions shared by tests are tests too")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoints::{Checkpoint, Error, Layout, RunState, Section, Store, TensorEntry, write_shard};
use proptest::prelude::*;

const LEN: usize = 3000;
const SECTIONS: [&str; 4] = ["master", "exp_avg", "exp_avg_sq", "ema"];

/// The system's allocator, which remembers the largest request.
struct Remembering;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        LARGEST.fetch_max(memory.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(memory) }
    }

    unsafe fn alloc_zeroed(&self, memory: Memory) -> *mut u8 {
        LARGEST.fetch_max(memory.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(memory) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, memory: Memory, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, memory, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Remembering = Remembering;

fn arena(section: usize, step: u64) -> Vec<f32> {
    (0..LEN).map(|i| (step * 10_000 + (section * LEN + i) as u64) as f32).collect()
}

fn cuts(ranks: usize) -> impl Iterator<Item = Range<usize>> {
    (0..ranks).map(move |rank| LEN * rank / ranks..LEN * (rank + 1) / ranks)
}

/// A run with two checkpoints of two ranks, steps 10 and 20, and the directory of the newer one.
fn run() -> (tempfile::TempDir, Store, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let newest = [10, 20].map(|step| save(&mut store, step, 2))[1].clone();
    (dir, store, newest)
}

fn save(store: &mut Store, step: u64, ranks: usize) -> PathBuf {
    let staging = store.begin(step).unwrap();
    let arenas: Vec<_> = (0..SECTIONS.len()).map(|section| arena(section, step)).collect();
    let shard = |(rank, range): (usize, Range<usize>)| {
        let section = |(name, arena): (_, &'_ Vec<f32>)| (name, arena[range.clone()].to_vec());
        let data: Vec<_> = SECTIONS.iter().zip(&arenas).map(section).collect();
        let sections: Vec<_> =
            data.iter().map(|(name, data)| Section { name, range: range.clone(), data }).collect();
        write_shard(staging.dir(), rank, &sections).unwrap()
    };
    let records = cuts(ranks).enumerate().map(shard).collect();
    let tensors = vec![TensorEntry { name: "w".into(), shape: vec![LEN as u64], offset: 0, len: LEN as u64 }];
    let state = RunState { step, world_size: ranks as u64, ..Default::default() };
    store.commit(staging, Layout { len: LEN as u64, tensors }, records, state).unwrap()
}

fn is_whole(checkpoint: &Checkpoint) -> bool {
    let step = checkpoint.state().step;
    (0..SECTIONS.len()).all(|section| {
        checkpoint.read_tensor(SECTIONS[section], "w").is_ok_and(|read| read == arena(section, step))
    })
}

/// The checkpoint of step 20 is passed over with a reason that contains `name`, and that of step 10 is used.
#[track_caller]
fn assert_passed_over(store: &Store, name: &str) {
    let found = store.newest_valid().unwrap();
    let [(path, reason)] = &found.rejected[..] else { panic!("{:?}", found.rejected) };
    assert!(path.ends_with("step-000000020"));
    assert!(reason.to_string().contains(name), "{reason}");
    assert!(is_whole(&found.checkpoint.unwrap()));
}

#[test]
fn every_kind_of_damage_is_named_and_the_checkpoint_before_is_used() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 9] = [
        ("rank-00001.safetensors is missing", |dir| fs::remove_file(shard(dir, 1)).unwrap()),
        ("manifest.json is missing", |dir| fs::remove_file(dir.join("manifest.json")).unwrap()),
        ("rank-00000.safetensors has 0 bytes", |dir| fs::write(shard(dir, 0), "").unwrap()),
        ("manifest.json is damaged: it does not end", |dir| {
            fs::write(dir.join("manifest.json"), "").unwrap()
        }),
        ("rank-00001.safetensors has 1000 bytes", |dir| {
            fs::File::options().write(true).open(shard(dir, 1)).unwrap().set_len(1000).unwrap();
        }),
        ("rank-00000.safetensors is damaged in section 'master', block 0", |dir| {
            fs::copy(shard(&dir.with_file_name("step-000000010"), 0), shard(dir, 0)).unwrap();
        }),
        ("rank-00000.safetensors", |dir| {
            fs::rename(shard(dir, 0), dir.join("aside")).unwrap();
            fs::rename(shard(dir, 1), shard(dir, 0)).unwrap();
            fs::rename(dir.join("aside"), shard(dir, 1)).unwrap();
        }),
        ("manifest.json is damaged: it is of step 10", |dir| {
            let manifest = |dir: &Path| dir.join("manifest.json");
            fs::copy(manifest(&dir.with_file_name("step-000000010")), manifest(dir)).unwrap();
        }),
        ("rank-00000.safetensors", |dir| {
            fs::remove_file(shard(dir, 0)).unwrap();
            fs::create_dir(shard(dir, 0)).unwrap();
        }),
    ];
    for (name, damage) in cases {
        let (_dir, store, newest) = run();
        damage(&newest);
        assert_passed_over(&store, name);
    }
}

fn shard(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank:05}.safetensors"))
}

/// Opening a pipe waits for a writer that never comes.
#[test]
fn a_pipe_in_the_place_of_a_file_stops_nobody() {
    for name in ["manifest.json", "rank-00000.safetensors", "metrics.json"] {
        let (_dir, store, newest) = run();
        let _ = fs::remove_file(newest.join(name));
        let made = Command::new("mkfifo").arg(newest.join(name)).status().unwrap();
        assert!(made.success());
        if name == "metrics.json" {
            let metrics = store.get(20).unwrap().metrics();
            assert!(matches!(metrics, Err(Error::BadMetrics { .. })), "{metrics:?}");
        } else {
            assert_passed_over(&store, name);
        }
    }
}

#[test]
fn files_that_do_not_belong_there_are_ignored() {
    let (dir, store, newest) = run();
    fs::write(newest.join("notes.txt"), "mine").unwrap();
    fs::write(newest.join("rank-00002.safetensors"), "not in the manifest").unwrap();
    fs::write(dir.path().join("checkpoints/step-000000030"), "a file, not a directory").unwrap();
    let found = store.newest_valid().unwrap();
    assert_eq!(found.checkpoint.unwrap().state().step, 20);
    assert!(matches!(
        &found.rejected[..],
        [(_, Error::NotADirectory { .. } | Error::MissingManifest { .. })]
    ));
}

/// An older checkpoint does not take its place: it may be good. The superuser may read every file until that right is taken away,
/// which only another program can do.
#[test]
fn a_file_that_may_not_be_read_is_named() {
    let (_dir, store, newest) = run();
    fs::set_permissions(shard(&newest, 1), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(shard(&newest, 1)).is_err() {
        let sentence = store.newest_valid().unwrap_err().to_string();
        assert!(sentence.starts_with("no permission to open "), "{sentence}");
        assert!(sentence.contains("rank-00001.safetensors; change its owner or mode"), "{sentence}");
        return;
    }
    let mut again = Command::new("setpriv");
    again.arg("--bounding-set=-dac_override,-dac_read_search").arg(std::env::current_exe().unwrap());
    let output = again.args(["--exact", "a_file_that_may_not_be_read_is_named"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// One to eight random bytes of the files of a checkpoint, all of which are covered by some checksum.
#[test]
fn random_bytes_are_always_noticed_and_no_damaged_length_is_allocated() {
    const CASES: u32 = 1000;
    const MOST_BYTES_AT_ONCE: usize = 1 << 20;
    let (_dir, store, newest) = run();
    let files = [newest.join("manifest.json"), shard(&newest, 0), shard(&newest, 1)];
    let originals = files.each_ref().map(|file| fs::read(file).unwrap());
    let place = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255u8);
    let config = ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        rng_seed: prop::test_runner::RngSeed::Fixed(11),
        ..Default::default()
    };
    let damage = |changes: Vec<(prop::sample::Index, prop::sample::Index, u8)>| {
        let mut damaged = originals.clone();
        for (file, at, mask) in changes {
            let bytes = &mut damaged[file.index(files.len())];
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        prop_assume!(damaged != originals);
        files.iter().zip(&damaged).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
        LARGEST.store(0, Ordering::Relaxed);
        assert_passed_over(&store, "step-000000020");
        let largest = LARGEST.load(Ordering::Relaxed);
        prop_assert!(largest <= MOST_BYTES_AT_ONCE, "{largest} bytes were asked for");
        Ok(())
    };
    let mut runner = prop::test_runner::TestRunner::new(config);
    runner.run(&prop::collection::vec(place, 1..8), damage).unwrap();
}

#[test]
fn saved_by_four_it_is_read_by_any_number_and_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    save(&mut store, 1, 4);
    for ranks in [1, 2, 3, 8] {
        // The readers write what they read, so the next one to read it is of another number again.
        let to = reshard(&mut store, 1, ranks as u64 + 1, ranks);
        let back = reshard(&mut store, to, 100 + ranks as u64, 4);
        for rank in 0..4 {
            let bytes = |step| fs::read(shard(store.get(step).unwrap().dir(), rank)).unwrap();
            assert!(bytes(1) == bytes(back), "4 to {ranks} and back");
        }
    }
}

/// Reads a checkpoint as `ranks` ranks and saves it as theirs.
fn reshard(store: &mut Store, from: u64, to: u64, ranks: usize) -> u64 {
    let checkpoint = store.get(from).unwrap();
    let staging = store.begin(to).unwrap();
    let records = cuts(ranks).enumerate().map(|(rank, range)| {
        let mut data = vec![vec![0.0; range.len()]; SECTIONS.len()];
        for (name, data) in SECTIONS.iter().zip(&mut data) {
            checkpoint.read(name, range.clone(), data).unwrap();
        }
        let sections: Vec<_> = SECTIONS
            .iter()
            .zip(&data)
            .map(|(name, data)| Section { name, range: range.clone(), data })
            .collect();
        write_shard(staging.dir(), rank, &sections).unwrap()
    });
    let records = records.collect();
    let state = RunState { step: to, world_size: ranks as u64, ..Default::default() };
    store.commit(staging, checkpoint.layout().clone(), records, state).unwrap();
    to
}
