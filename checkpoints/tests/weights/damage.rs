//! Every way in which a file can be damaged has its own error, and no bytes at all make a panic.

use std::fs;

use checkpoints::Error;
use checkpoints::weights::{CONFIG_FILE, ReferenceConfig, WEIGHTS_FILE, WeightsError, WeightsFile};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::common::{Golden, file_of, file_of_text, open_bytes, refused, to_bytes};

fn tensor(shape: Value, begin: u64, end: u64) -> Value {
    json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})
}

fn refused_header(header: Value, data: usize) -> WeightsError {
    refused(open_bytes(&file_of(&header, &vec![0; data])))
}

#[test]
fn a_file_that_was_cut_is_named_wherever_the_cut_is() {
    let bytes = file_of(&json!({"w": tensor(json!([2]), 0, 8)}), &[0; 8]);
    let header = bytes.len() - 8;
    for end in 0..bytes.len() {
        match refused(open_bytes(&bytes[..end])) {
            WeightsError::HeaderCut { found, .. } => assert!(end < header && found == end as u64),
            WeightsError::WrongLength { expected, found, .. } => {
                assert!(end >= header && found == end as u64 && expected == bytes.len() as u64);
            }
            other => panic!("{other}"),
        }
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(refused(open_bytes(&longer)), WeightsError::WrongLength { .. }));
    assert!(open_bytes(&bytes).is_ok());
}

#[test]
fn absurd_header_lengths_are_refused_before_anything_is_allocated() {
    for length in [100_000_001, 1 << 40, u64::MAX] {
        let error = refused(open_bytes(&[&length.to_le_bytes()[..], b"{}"].concat()));
        assert!(matches!(error, WeightsError::HeaderTooLong { bytes, .. } if bytes == length), "{error}");
    }
    let error = refused(open_bytes(&[&3u64.to_le_bytes()[..], b"{}"].concat()));
    assert!(matches!(error, WeightsError::HeaderCut { needed: 11, found: 10, .. }), "{error}");
}

#[test]
fn pickles_are_told_from_damaged_files() {
    for start in [
        &b"PK\x03\x04\0\0\x08\x08\0\0"[..],
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x80\x04\x95abcdefgh",
    ] {
        assert!(matches!(refused(open_bytes(start)), WeightsError::Pickle { .. }));
    }
}

#[test]
fn headers_that_are_no_headers_are_refused() {
    let deep = "[".repeat(100_000);
    for text in [
        "",
        "[]",
        "{",
        "{}x",
        "{\"w\": 3}",
        "{\"w\": {\"dtype\": \"F33\", \"shape\": [], \"data_offsets\": [0, 4]}}",
        "{\"w\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 4]}}",
        "{\"w\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0]}}",
        "{\"w\": {\"dtype\": \"F32\", \"shape\": [1]}}",
        "{\"w\": {\"dtype\": \"F32\", \"shape\": [1.5], \"data_offsets\": [0, 4]}}",
        &deep,
    ] {
        let error = refused(open_bytes(&file_of_text(text, &[])));
        assert!(matches!(error, WeightsError::BadHeader { .. }), "{error}");
    }
    let error = refused(open_bytes(&file_of_text("{\"w\"\u{7f}", &[0xff])));
    assert!(matches!(error, WeightsError::BadHeader { .. }), "{error}");
    let named = open_bytes(&file_of_text("{\"__metadata__\": {\"format\": \"pt\"}}   ", &[])).unwrap();
    assert!(named.tensors().is_empty());
}

#[test]
fn offsets_must_cover_the_data_exactly_once() {
    for (shape, begin, end) in [
        (json!([2]), 0, 4),
        (json!([2]), 8, 0),
        (json!([1, 0]), 0, 8),
        (json!([u64::MAX, 3]), 0, 8),
        (json!([1u64 << 62]), 0, 8),
    ] {
        let error = refused_header(json!({"w": tensor(shape, begin, end)}), 8);
        assert!(matches!(&error, WeightsError::BadOffsets { key, .. } if key == "w"), "{error}");
    }
    let error = refused_header(json!({"a": tensor(json!([2]), 0, 8), "b": tensor(json!([2]), 4, 12)}), 12);
    assert!(
        matches!(&error, WeightsError::Overlap { first, second, .. } if first == "a" && second == "b"),
        "{error}"
    );
    let error = refused_header(json!({"a": tensor(json!([2]), 0, 8), "b": tensor(json!([2]), 0, 8)}), 8);
    assert!(matches!(error, WeightsError::Overlap { .. }), "{error}");
    let error = refused_header(json!({"a": tensor(json!([1]), 0, 4), "b": tensor(json!([1]), 8, 12)}), 12);
    assert!(matches!(&error, WeightsError::Hole { key, bytes: 4, .. } if key == "b"), "{error}");
    let error = refused_header(json!({"a": tensor(json!([1]), 4, 8)}), 8);
    assert!(matches!(error, WeightsError::Hole { .. }), "{error}");
    let far = u64::MAX - 3;
    let error = refused_header(json!({"a": tensor(json!([1]), far - 4, far)}), 8);
    assert!(matches!(error, WeightsError::Hole { .. }), "{error}");
    let error = refused_header(json!({"a": tensor(json!([1u64 << 40]), 0, 1u64 << 42)}), 8);
    assert!(matches!(error, WeightsError::WrongLength { .. }), "{error}");
    let odd = json!({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}});
    assert!(matches!(refused_header(odd, 0), WeightsError::BadOffsets { .. }));
    let twice = "{\"a\": {\"dtype\": \"F32\", \"shape\": [0], \"data_offsets\": [0, 0]}, \
                  \"a\": {\"dtype\": \"F32\", \"shape\": [0], \"data_offsets\": [0, 0]}}";
    assert!(matches!(refused(open_bytes(&file_of_text(twice, &[]))), WeightsError::DuplicateKey { .. }));
}

#[test]
fn what_is_not_there_or_no_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refused(WeightsFile::open(dir.path())), WeightsError::NotFound { .. }));
    assert!(matches!(refused(WeightsFile::open(dir.path().join("none"))), WeightsError::NotFound { .. }));
    assert!(matches!(refused(WeightsFile::open("/dev/null")), WeightsError::NotAFile { .. }));
    fs::create_dir(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert!(matches!(refused(WeightsFile::open(dir.path())), WeightsError::NotAFile { .. }));
}

#[test]
fn a_file_cut_after_it_was_opened_is_an_error_of_the_disk() {
    let golden = Golden::open("rotary_stopping");
    let dir = golden.folder(true);
    let file = WeightsFile::open(dir.path()).unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = file.read("output_layer.linear.weight").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

/// Everything that can be asked of a file.
fn use_it(path: &std::path::Path) {
    let golden = Golden::open("rotary_stopping");
    let (layout, mut buffer) = golden.arena();
    let Ok(file) = WeightsFile::open(path) else { return };
    if let Ok(Some(config)) = file.config() {
        let _ = file.architecture(&config);
    }
    if let Ok(description) = file.describe() {
        description.parameters();
    }
    let _ = file.architecture(&ReferenceConfig { nhead: Some(4), ..Default::default() });
    let _ = file.check_frequencies(8);
    let _ = file.read_into(&layout.tensors, &mut buffer);
    for name in file.tensors().keys() {
        let _ = file.read(name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: prop::test_runner::RngSeed::Fixed(11), cases: 400, ..Default::default() })]

    /// Mostly in the header, which is where a change means something.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((0..4500usize, any::<u8>()), 1..6),
        in_config in prop::collection::vec((0..250usize, any::<u8>()), 0..3),
        cut in prop::option::of(0..40_000usize),
    ) {
        let golden = Golden::open("rotary_stopping");
        let dir = golden.folder(true);
        let mut bytes = to_bytes(&golden.state);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let path = dir.path().join(WEIGHTS_FILE);
        fs::write(&path, bytes).unwrap();
        let config = dir.path().join(CONFIG_FILE);
        let mut text = fs::read(&config).unwrap();
        for (at, byte) in in_config {
            text[at] = byte;
        }
        fs::write(config, text).unwrap();
        use_it(&path);
    }

    #[test]
    fn random_headers_never_panic(text in "[{}\\[\\]\":,0-9a-z_ ]{0,60}", data in prop::collection::vec(any::<u8>(), 0..32)) {
        let _ = open_bytes(&file_of_text(&text, &data));
    }

    /// Digits of the header replaced by digits: other shapes, other offsets, still a header.
    #[test]
    fn changed_numbers_never_panic(picks in prop::collection::vec((any::<prop::sample::Index>(), 0..10u8), 1..8)) {
        let golden = Golden::open("gpt2_stopping");
        let dir = golden.folder(true);
        let mut bytes = to_bytes(&golden.state);
        let end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let digits: Vec<usize> = (8..end).filter(|&at| bytes[at].is_ascii_digit()).collect();
        for (pick, digit) in picks {
            bytes[*pick.get(&digits)] = b'0' + digit;
        }
        let path = dir.path().join(WEIGHTS_FILE);
        fs::write(&path, bytes).unwrap();
        use_it(&path);
    }
}
