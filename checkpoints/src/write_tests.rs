//! A shard is a plain safetensors file, or a clear error.

use safetensors::SafeTensors;

use super::*;
use crate::testing::{SECTIONS, bits, values};

#[test]
fn a_shard_is_a_plain_safetensors_file() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<Vec<f32>> = SECTIONS.iter().map(|name| values(name, 1, 100)).collect();
    let sections: Vec<_> =
        SECTIONS.iter().zip(&data).map(|(name, data)| Section { name, range: 300..400, data }).collect();
    let record = write_shard(dir.path(), 3, &sections).unwrap();
    assert_eq!(record.file, "rank-00003.safetensors");
    let bytes = std::fs::read(dir.path().join(&record.file)).unwrap();
    assert_eq!(bytes.len() as u64, record.bytes);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), SECTIONS.len());
    for (section, slice) in sections.iter().zip(&record.sections) {
        let tensor = file.tensor(section.name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[100][..]));
        let read: Vec<f32> =
            tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(bits(&read), bits(section.data));
        assert_eq!((slice.start, slice.end, slice.file_offset % 8), (300, 400, 0));
        assert_eq!(slice.checksums, [checksum(tensor.data())]);
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let about = metadata.metadata().as_ref().unwrap();
    assert_eq!(about["ranges"], "master=300..400 exp_avg=300..400 exp_avg_sq=300..400 ema=300..400");
}

#[test]
fn equal_slices_are_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = values("master", 1, 100);
    let sections = ["master", "ema"].map(|name| Section { name, range: 0..100, data: &data });
    let files = ["a", "b"].map(|name| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let record = write_shard(&dir, 0, &sections).unwrap();
        (std::fs::read(dir.join(&record.file)).unwrap(), record)
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn sections_that_contradict_themselves_are_refused_before_a_file_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = [0.0; 4];
    let section = |name, range| Section { name, range, data: &data };
    #[expect(clippy::reversed_empty_ranges, reason = "the point of the test")]
    let reversed = 4..0;
    for (sections, part) in [
        (vec![section("master", 0..5)], "4 elements for the range 0..5"),
        (vec![section("master", reversed)], "4 elements for the range 4..0"),
        (vec![section("ema", 0..4), section("ema", 3..7)], "ascend"),
        (vec![section("ema", 0..4), section("master", 0..4), section("ema", 4..8)], "twice"),
        (vec![section("__metadata__", 0..4)], "letters"),
        (vec![section("", 0..4)], "letters"),
        (vec![section("a=b", 0..4)], "letters"),
    ] {
        let error = write_shard(dir.path(), 0, &sections).unwrap_err();
        assert!(matches!(&error, Error::Unsavable { what, .. } if what.contains(part)), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_named_as_such() {
    let path = Path::new("/dev/full");
    let mut full = File::options().write(true).open(path).unwrap();
    let error = write_parts(&mut full, b"header", &[], 8).unwrap_err();
    let error = Error::io("write", path, error);
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(error.to_string().starts_with("no space left to write /dev/full"), "{error}");
}

#[test]
fn two_ranks_with_one_number_are_noticed_and_so_is_a_missing_directory() {
    let dir = tempfile::tempdir().unwrap();
    let section = [Section { name: "master", range: 0..1, data: &[1.0] }];
    write_shard(dir.path(), 0, &section).unwrap();
    for dir in [dir.path().to_path_buf(), dir.path().join("nowhere")] {
        let error = write_shard(&dir, 0, &section).unwrap_err();
        assert!(error.to_string().contains("rank-00000.safetensors"), "{error}");
    }
}
