//! Every range read is what was saved, or an error that names the damage.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::Store;
use crate::testing::{self, BLOCK, SECTIONS, bits, flip, is_whole, values};
use crate::write::{Section, write_shard_in_blocks};

#[test]
fn saved_by_n_ranks_it_is_read_by_m() {
    let len = 101;
    for writers in [1, 2, 3, 4, 7, 16, 150] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(save_in(dir.path(), writers, len)).unwrap();
        checkpoint.verify().unwrap();
        assert_eq!(checkpoint.sections(), SECTIONS);
        for readers in [1, 2, 3, 5, 8, 16, 101, 130] {
            for section in SECTIONS {
                let expected = bits(&values(section, 9, len));
                for slice in testing::slices(len, readers) {
                    let mut read = vec![0.0; slice.len()];
                    checkpoint.read(section, slice.clone(), &mut read).unwrap();
                    assert_eq!(bits(&read), expected[slice], "{writers} to {readers}");
                }
            }
        }
    }
}

/// As ranks write that own a part of every bucket.
#[test]
fn several_slices_of_a_section_are_one_tensor_and_any_range_is_read() {
    let len = 100;
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let staging = store.begin(9).unwrap();
    let shard = |rank: usize| {
        let arenas = SECTIONS.map(|name| (name, values(name, 9, len)));
        let owned = [(20 * rank)..(20 * rank + 20), (40 + 30 * rank)..(70 + 30 * rank)];
        let slices = arenas.iter().flat_map(|(name, arena)| {
            owned.clone().map(|range| Section { name, data: &arena[range.clone()], range })
        });
        write_shard_in_blocks(staging.dir(), rank, &slices.collect::<Vec<_>>(), BLOCK).unwrap()
    };
    let records = vec![shard(0), shard(1)];
    let saved = store.commit(staging, testing::layout(len), records, testing::state(9, 2)).unwrap();
    let checkpoint = Checkpoint::open(&saved).unwrap();
    checkpoint.verify().unwrap();
    assert!(is_whole(&checkpoint));
    let mut read = vec![0.0; 35];
    checkpoint.read("exp_avg", 15..50, &mut read).unwrap();
    assert_eq!(bits(&read), bits(&values("exp_avg", 9, len)[15..50]));

    let bytes = fs::read(saved.join("rank-00001.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("ema").unwrap().shape(), [50]);
}

fn save_in(dir: &Path, ranks: usize, len: usize) -> PathBuf {
    testing::save(&mut Store::open(dir).unwrap(), 9, ranks, len)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: prop::test_runner::RngSeed::Fixed(5), cases: 48, ..Default::default() })]

    /// Slices of any sizes, in any order of ranks, and any range across them.
    #[test]
    fn any_cut_gives_any_range(sizes in prop::collection::vec(0..40usize, 1..7), a in 0..240usize, b in 0..240usize, turn in 0..7usize) {
        let len = sizes.iter().sum::<usize>();
        let mut end = 0;
        let mut cuts: Vec<_> = sizes.iter().map(|size| { end += size; end - size..end }).collect();
        cuts.rotate_left(turn % sizes.len());
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(testing::save_cut(&mut Store::open(dir.path()).unwrap(), 9, &cuts)).unwrap();
        checkpoint.verify().unwrap();
        let range = a.min(b).min(len)..a.max(b).min(len);
        let mut read = vec![0.0; range.len()];
        checkpoint.read("ema", range.clone(), &mut read).unwrap();
        prop_assert_eq!(bits(&read), bits(&values("ema", 9, len)[range]));
    }
}

#[test]
fn any_flipped_byte_of_a_shard_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save_in(dir.path(), 2, 37);
    for rank in 0..2 {
        let shard = saved.join(crate::manifest::shard_file(rank as u64));
        for at in 0..fs::metadata(&shard).unwrap().len() as usize {
            for mask in [0x01, 0x80, 0xff] {
                flip(&shard, at, mask);
                let checkpoint = Checkpoint::open(&saved).unwrap();
                assert!(checkpoint.verify().is_err(), "byte {at}");
                let header_end = checkpoint.manifest.shards[rank].sections[0].file_offset as usize;
                assert_eq!(is_whole(&checkpoint), at < header_end, "a read of byte {at} must fail");
                flip(&shard, at, mask);
            }
        }
    }
    assert!(is_whole(&Checkpoint::open(&saved).unwrap()));
}

#[test]
fn any_other_length_of_a_shard_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save_in(dir.path(), 2, 37);
    let shard = saved.join("rank-00001.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let longer = [&bytes[..], &[0]].concat();
    let opened = Checkpoint::open(&saved).unwrap();
    for cut in (0..bytes.len()).map(|end| &bytes[..end]).chain([&longer[..]]) {
        fs::write(&shard, cut).unwrap();
        let error = Checkpoint::open(&saved).unwrap_err();
        assert!(matches!(error, Error::WrongSize { found, .. } if found == cut.len() as u64), "{error}");
    }
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(opened.verify(), Err(Error::WrongSize { .. })), "cut after opening");
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save_in(dir.path(), 2, 37);
    let opened = Checkpoint::open(&saved).unwrap();
    fs::remove_file(saved.join("rank-00001.safetensors")).unwrap();
    assert!(
        matches!(opened.verify(), Err(Error::MissingShard { path }) if path.ends_with("rank-00001.safetensors"))
    );
    assert!(matches!(Checkpoint::open(&saved), Err(Error::MissingShard { .. })));
    fs::remove_file(saved.join("manifest.json")).unwrap();
    assert!(matches!(Checkpoint::open(&saved), Err(Error::MissingManifest { .. })));
    assert!(matches!(Checkpoint::open(dir.path().join("nowhere")), Err(Error::MissingManifest { .. })));
    fs::create_dir(saved.join("manifest.json")).unwrap();
    assert!(
        matches!(Checkpoint::open(&saved), Err(Error::BadManifest { what, .. }) if what.contains("regular file"))
    );
}

#[test]
fn damage_elsewhere_does_not_disturb_a_read_and_is_named_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save_in(dir.path(), 1, 100);
    let checkpoint = Checkpoint::open(&saved).unwrap();
    let slice = &checkpoint.manifest.shards[0].sections[1];
    flip(&saved.join("rank-00000.safetensors"), slice.file_offset as usize + 2 * BLOCK * 4, 1);
    let mut read = [0.0; BLOCK];
    checkpoint.read("exp_avg", BLOCK..2 * BLOCK, &mut read).unwrap();
    assert_eq!(bits(&read), bits(&values("exp_avg", 9, 100)[BLOCK..2 * BLOCK]));
    let error = checkpoint.read("exp_avg", BLOCK + 1..2 * BLOCK + 1, &mut read).unwrap_err();
    assert!(error.to_string().contains("section 'exp_avg', block 2"), "{error}");
}

#[test]
fn a_header_that_contradicts_the_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save_in(dir.path(), 1, 20);
    let header = |record: &ShardRecord| {
        let bytes = fs::read(saved.join(&record.file)).unwrap();
        bytes[..record.sections[0].file_offset as usize].to_vec()
    };
    let record = Checkpoint::open(&saved).unwrap().manifest.shards.remove(0);
    let good = header(&record);
    assert_eq!(header_matches(&good, &record), Ok(()));
    let text = String::from_utf8(good[8..].to_vec()).unwrap();
    for other in
        [text.replace("F32", "I32"), text.replace("\"ema\"", "\"emb\""), text.replace("[20]", "[10]")]
    {
        let changed = [&good[..8], other.as_bytes()].concat();
        assert!(header_matches(&changed, &record).is_err(), "{other}");
    }
    assert!(header_matches(&good[..good.len() - 1], &record).is_err());
    assert!(header_matches(&good[..4], &record).is_err());
    let mut fewer = record.clone();
    fewer.sections.pop();
    assert!(header_matches(&good, &fewer).is_err());
}

#[test]
fn impossible_reads_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(save_in(dir.path(), 2, 20)).unwrap();
    let mut out = [0.0; 4];
    #[expect(clippy::reversed_empty_ranges, reason = "the point of the test")]
    for range in [18..22, 0..3, 4..0, usize::MAX - 4..usize::MAX] {
        assert!(matches!(checkpoint.read("ema", range, &mut out), Err(Error::OutOfRange { .. })));
    }
    let error = checkpoint.read("moments", 0..4, &mut out).unwrap_err();
    assert!(
        error.to_string().contains("no section 'moments' (it has master, exp_avg, exp_avg_sq, ema)"),
        "{error}"
    );
}

#[test]
fn parameters_are_read_by_name_and_layouts_compared() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(save_in(dir.path(), 3, 20)).unwrap();
    let output = checkpoint.read_tensor("master", "output").unwrap();
    assert_eq!(bits(&output), bits(&values("master", 9, 20)[10..20]));
    assert!(matches!(checkpoint.read_tensor("master", "head"), Err(Error::UnknownTensor { .. })));
    checkpoint.require_layout(&testing::layout(20)).unwrap();
    let error = checkpoint.require_layout(&testing::layout(24)).unwrap_err();
    assert!(error.to_string().contains("'embed' has shape [9] where the model has [11]"), "{error}");
}
