//! What this crate's tests share: arenas whose every bit pattern is told apart, saved in small blocks.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::manifest::{RunState, ShardRecord};
use crate::store::{Staging, Store};
use crate::write::{Section, write_shard_in_blocks};
use crate::{Checkpoint, Layout, TensorEntry};

pub(crate) const SECTIONS: [&str; 4] = ["master", "exp_avg", "exp_avg_sq", "ema"];
/// Elements per block, so that a small arena has many.
pub(crate) const BLOCK: usize = 8;

/// Any bit pattern at all, NaNs included.
pub(crate) fn values(section: &str, step: u64, len: usize) -> Vec<f32> {
    let bits = |i: usize| xxh3_64_with_seed(section.as_bytes(), (step << 32) | i as u64) as u32;
    (0..len).map(|i| f32::from_bits(bits(i))).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Two parameters with a gap for alignment between them.
pub(crate) fn layout(len: usize) -> Layout {
    let half = (len / 2) as u64;
    let tensor = |name: &str, offset, len| TensorEntry { name: name.into(), shape: vec![len], offset, len };
    let tensors = vec![tensor("embed", 0, half.saturating_sub(1)), tensor("output", half, len as u64 - half)];
    Layout { len: len as u64, tensors }
}

/// `len` elements cut into `ranks` slices, the last ones shorter or empty.
pub(crate) fn slices(len: usize, ranks: usize) -> Vec<Range<usize>> {
    let size = len.div_ceil(ranks);
    (0..ranks).map(|rank| (rank * size).min(len)..((rank + 1) * size).min(len)).collect()
}

pub(crate) fn state(step: u64, ranks: usize) -> RunState {
    let counters = [("skipped_steps".to_string(), 3)].into();
    RunState {
        step,
        position: step * 64,
        seed: u64::MAX,
        ema_updates: step,
        num_embeddings: 30,
        config_hash: "c0ffee".into(),
        dataset_fingerprint: "rows \"quoted\" \\ \u{e9}".into(),
        world_size: ranks as u64,
        counters,
    }
}

/// Every rank's shard of the arenas of `step`.
pub(crate) fn write_shards(dir: &Path, step: u64, cuts: &[Range<usize>]) -> Vec<ShardRecord> {
    let len = cuts.iter().map(|cut| cut.end).max().unwrap();
    let arenas = SECTIONS.map(|section| (section, values(section, step, len)));
    let shard = |(rank, cut): (usize, &Range<usize>)| {
        let section =
            |(name, arena)| Section { name, range: cut.clone(), data: &<[f32]>::as_ref(arena)[cut.clone()] };
        let sections: Vec<_> = arenas.iter().map(|(name, arena)| section((*name, arena))).collect();
        write_shard_in_blocks(dir, rank, &sections, BLOCK).unwrap()
    };
    cuts.iter().enumerate().map(shard).collect()
}

pub(crate) fn begin(store: &mut Store, step: u64, cuts: &[Range<usize>]) -> (Staging, Vec<ShardRecord>) {
    let staging = store.begin(step).unwrap();
    let records = write_shards(staging.dir(), step, cuts);
    (staging, records)
}

pub(crate) fn save_cut(store: &mut Store, step: u64, cuts: &[Range<usize>]) -> PathBuf {
    let (staging, records) = begin(store, step, cuts);
    let len = cuts.iter().map(|cut| cut.end).max().unwrap();
    store.commit(staging, layout(len), records, state(step, cuts.len())).unwrap()
}

pub(crate) fn save(store: &mut Store, step: u64, ranks: usize, len: usize) -> PathBuf {
    save_cut(store, step, &slices(len, ranks))
}

/// Whether every section holds exactly what `save` put there.
pub(crate) fn is_whole(checkpoint: &Checkpoint) -> bool {
    let len = checkpoint.layout().len as usize;
    SECTIONS.iter().all(|section| {
        let mut read = vec![0.0; len];
        checkpoint.read(section, 0..len, &mut read).is_ok()
            && bits(&read) == bits(&values(section, checkpoint.state().step, len))
    })
}

/// Changes one byte of a file in place.
pub(crate) fn flip(path: &Path, at: usize, mask: u8) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at as u64).unwrap();
}
