//! Every damaged or odd file under every policy: exactly these rows are refused, or skipped and counted.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use data_pipeline::{
    Columns, Dataset, Detokenizer, Error, OnBad, ParquetDataset, ParquetOptions, SpecialTokenNames, Tokenizer,
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// What is wrong with a file.
enum Fault {
    /// It cannot be used at all; its sentence has these parts.
    File(&'static [&'static str]),
    /// The rows 100..=199, its second row group, cannot be decoded.
    SecondGroup(&'static str),
    /// These rows are bad.
    Rows(Vec<u64>, &'static str),
    /// Nothing.
    None,
    /// It is sound, without rows.
    NoRows,
}

const MARK: &str = "does not end with the mark 'PAR1'";

/// (name, rows, fault) of every file of the folder.
fn cases() -> Vec<(&'static str, u64, Fault)> {
    let nulls = [8, 15, 17, 32, 63, 72, 97].into_iter().chain(100..200).collect();
    vec![
        ("truncated", 0, Fault::File(&[MARK])),
        ("zero_byte", 0, Fault::File(&["it has only 0 bytes"])),
        ("not_parquet", 0, Fault::File(&[MARK])),
        ("bad_footer_magic", 0, Fault::File(&[MARK])),
        ("bad_footer_length", 0, Fault::File(&["footer of 2147483632 bytes in a file of 38308"])),
        ("corrupt_footer_metadata", 0, Fault::File(&["footer is damaged"])),
        ("wrong_column", 0, Fault::File(&["no column", "'text'", "its columns are 'content'"])),
        ("wrong_type", 0, Fault::File(&["column 'text'", "holds INT64, but text is needed"])),
        ("wrong_type_list", 0, Fault::File(&["column 'text'", "holds lists of text, but text is needed"])),
        ("null_texts", 300, Fault::Rows(nulls, "column 'text' is null")),
        ("invalid_utf8_binary", 100, Fault::Rows(vec![0, 97, 98], "not valid UTF-8")),
        ("invalid_utf8_string", 100, Fault::Rows(vec![0, 97, 98], "not valid UTF-8")),
        ("corrupt_page_data", 400, Fault::SecondGroup("is damaged")),
        ("corrupt_page_crc", 400, Fault::SecondGroup("CRC checksum mismatch")),
        ("empty_strings", 100, Fault::None),
        ("huge_document", 51, Fault::None),
        ("no_rows", 0, Fault::NoRows),
    ]
}

const BOTH: [OnBad; 2] = [OnBad::Error, OnBad::Skip];

fn folder() -> PathBuf {
    test_support::data_dir().join("bad")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.parquet"))
}

fn bert() -> Arc<Tokenizer> {
    let path = test_support::data_dir().join("tokenizers/bert-base-uncased/tokenizer.json");
    Arc::new(Tokenizer::open(&path, &SpecialTokenNames::default()).unwrap())
}

fn options(on_bad_row: OnBad, on_bad_file: OnBad) -> ParquetOptions {
    ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: Some(64),
        on_bad_row,
        on_bad_file,
    }
}

fn open(
    location: &Path,
    tokenizer: &Arc<Tokenizer>,
    on_bad_row: OnBad,
    on_bad_file: OnBad,
) -> Result<ParquetDataset, Error> {
    ParquetDataset::open(location.to_str().unwrap(), tokenizer, options(on_bad_row, on_bad_file))
}

fn has_parts(error: &Error, name: &str, parts: &[&str]) {
    let message = error.to_string();
    let file = format!("{name}.parquet");
    for part in parts.iter().chain([&file.as_str()]) {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

/// Reads all rows (twice, if some are bad) in an order that mixes row groups: the `bad` ones are refused with `part`, or skipped.
fn read(dataset: &ParquetDataset, name: &str, bad: &BTreeSet<u64>, part: &str, policy: OnBad) {
    let len = dataset.len();
    let times = if bad.is_empty() { 1 } else { 2 };
    for row in (0..times * len).map(|i| i * 7919 % len) {
        match (dataset.example(row), bad.contains(&row), policy) {
            (Ok(Some(_)), false, _) | (Ok(None), true, OnBad::Skip) => {}
            (Err(error), true, OnBad::Error) => {
                let place = if part.ends_with("is damaged") || part.contains("CRC") {
                    "row group 1 (rows 100..=199)".to_owned()
                } else {
                    format!("row {row} (row group ")
                };
                has_parts(&error, name, &[part, &place]);
            }
            (other, ..) => panic!("{name}, row {row}: {other:?}"),
        }
    }
    assert_eq!(dataset.skipped(), if policy == OnBad::Skip { bad.len() as u64 } else { 0 }, "{name}");
}

#[test]
fn every_bad_file_under_every_policy() {
    let bert = bert();
    for (name, rows, fault) in cases() {
        for (on_bad_row, on_bad_file) in BOTH.into_iter().flat_map(|row| BOTH.map(|file| (row, file))) {
            let opened = open(&file(name), &bert, on_bad_row, on_bad_file);
            let (bad, part, policy) = match &fault {
                // With no sound file beside it there is nothing left to read, whatever the policy.
                Fault::File(parts) => {
                    has_parts(&opened.unwrap_err(), name, parts);
                    continue;
                }
                Fault::NoRows => {
                    has_parts(&opened.unwrap_err(), name, &["has no rows"]);
                    continue;
                }
                Fault::Rows(bad, part) => (bad.iter().copied().collect(), *part, on_bad_row),
                Fault::SecondGroup(part) => ((100..200).collect(), *part, on_bad_file),
                Fault::None => (BTreeSet::new(), "", OnBad::Error),
            };
            let dataset = opened.unwrap();
            assert_eq!(dataset.len(), rows, "{name}");
            read(&dataset, name, &bad, part, policy);
        }
    }
}

#[test]
fn every_file_of_the_folder_is_covered() {
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, cases().iter().map(|(name, ..)| (*name).to_owned()).collect());
}

#[test]
fn a_set_goes_on_without_its_bad_files() {
    let bert = bert();
    let whole = open(&folder(), &bert, OnBad::Skip, OnBad::Skip).unwrap();
    assert_eq!(whole.len(), cases().iter().map(|(_, rows, _)| rows).sum::<u64>());
    for row in 0..whole.len() {
        whole.example(row).unwrap();
    }
    assert_eq!(whole.skipped(), 107 + 2 * 3 + 2 * 100);

    let told = open(&folder(), &bert, OnBad::Skip, OnBad::Error).unwrap_err().to_string();
    for (name, _, fault) in cases() {
        let lines = told.lines().filter(|line| line.contains(&format!("{name}.parquet"))).count();
        assert_eq!(lines, usize::from(matches!(fault, Fault::File(_))), "{name}: {told}");
    }
}

#[test]
fn rows_without_words_are_examples_without_tokens() {
    let dataset = open(&file("empty_strings"), &bert(), OnBad::Skip, OnBad::Skip).unwrap();
    let tokens = |row| dataset.example(row).unwrap().unwrap().tokens;
    let empty: Vec<u64> = (0..dataset.len()).filter(|&row| tokens(row).is_empty()).collect();
    assert_eq!(empty, [3, 12, 26, 48, 49, 55, 57, 60, 62, 77, 83, 97]);
}

#[test]
fn a_huge_document_is_a_row() {
    let options = ParquetOptions { max_tokens: None, ..options(OnBad::Error, OnBad::Error) };
    let location = file("huge_document");
    let dataset = ParquetDataset::open(location.to_str().unwrap(), &bert(), options).unwrap();
    assert!(dataset.example(32).unwrap().unwrap().tokens.len() > 100_000);
}

/// What cannot be reached may be there tomorrow, with other rows in it: to go on without it would change the data.
#[test]
fn a_file_that_is_gone_is_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::copy(file("empty_strings"), dir.path().join(format!("{name}.parquet"))).unwrap();
    }
    let dataset = open(dir.path(), &bert(), OnBad::Skip, OnBad::Skip).unwrap();
    std::fs::remove_file(dir.path().join("b.parquet")).unwrap();
    assert!(dataset.example(0).unwrap().is_some());
    assert!(matches!(dataset.example(150), Err(Error::Io { .. })));
    assert_eq!(dataset.skipped(), 0);
}

#[test]
fn each_bad_place_is_warned_of_once_and_their_number_is_bounded() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let warned = |location: &Path, tokenizer: &Arc<Tokenizer>| {
        lines.lock().unwrap().clear();
        tracing::subscriber::with_default(Warnings(lines.clone()), || {
            let dataset = open(location, tokenizer, OnBad::Skip, OnBad::Skip).unwrap();
            for row in (0..3 * dataset.len()).map(|row| row % dataset.len()) {
                dataset.example(row).unwrap();
            }
        });
        lines.lock().unwrap().clone()
    };
    let bert = bert();
    let rows = warned(&file("invalid_utf8_binary"), &bert);
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows[1].contains("row 97 (row group ") && rows[1].ends_with("it is skipped"), "{rows:?}");

    let group = warned(&file("corrupt_page_crc"), &bert);
    assert_eq!(group.len(), 1, "{group:?}");
    assert!(group[0].contains("rows 100..=199") && group[0].contains("CRC"), "{group:?}");

    let many = warned(&file("null_texts"), &bert);
    assert_eq!(many.len(), 101, "107 rows are null");
    assert!(many[100].contains("only counted"), "{}", many[100]);
}

/// A subscriber that keeps the messages.
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message(&self.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message<'a>(&'a Mutex<Vec<String>>);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}
