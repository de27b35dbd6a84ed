//! Damaged and odd files: each gives rows, or one sentence that names file, row group and row.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use data_pipeline::{
    Columns, Dataset, Detokenizer, Error, ParquetDataset, ParquetOptions, SpecialTokenNames, Tokenizer,
};

fn bert() -> Arc<Tokenizer> {
    let path = test_support::data_dir().join("tokenizers/bert-base-uncased/tokenizer.json");
    Arc::new(Tokenizer::open(&path, &SpecialTokenNames::default()).unwrap())
}

fn options() -> ParquetOptions {
    ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        memory: 64 << 20,
    }
}

fn open_path(path: &Path) -> Result<ParquetDataset, Error> {
    ParquetDataset::open(path.to_str().unwrap(), &bert(), options())
}

fn open(name: &str) -> Result<ParquetDataset, Error> {
    open_path(&test_support::data_dir().join("bad").join(name))
}

/// The error of opening: one line that names the file and all of `parts`.
fn refused(name: &str, parts: &[&str]) -> Error {
    let error = open(name).unwrap_err();
    one_sentence(&error, name, parts);
    error
}

fn one_sentence(error: &Error, name: &str, parts: &[&str]) {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts.iter().chain([&name]) {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// Every row's number of tokens or error, read in an order that mixes row groups.
fn rows(dataset: &ParquetDataset) -> BTreeMap<u64, Result<usize, Error>> {
    let len = dataset.len();
    (0..len)
        .map(|i| i * 7919 % len)
        .map(|row| (row, dataset.example(row).map(|e| e.unwrap().tokens.len())))
        .collect()
}

fn bad_rows(rows: &BTreeMap<u64, Result<usize, Error>>) -> Vec<u64> {
    rows.iter().filter(|(_, result)| result.is_err()).map(|(row, _)| *row).collect()
}

#[test]
fn files_without_a_sound_footer_are_refused_at_the_start() {
    for (name, reason) in [
        ("truncated.parquet", "does not end with the mark 'PAR1'"),
        ("zero_byte.parquet", "it has only 0 bytes"),
        ("not_parquet.parquet", "does not end with the mark 'PAR1'"),
        ("bad_footer_magic.parquet", "does not end with the mark 'PAR1'"),
        ("bad_footer_length.parquet", "claims a footer of 2147483632 bytes in a file of 38308"),
        ("corrupt_footer_metadata.parquet", "footer is damaged"),
    ] {
        assert!(!refused(name, &[reason]).is_config());
    }
}

#[test]
fn wrong_columns_are_refused_by_name_and_type() {
    refused("wrong_column.parquet", &["no column", "'text'", "'token_ids'", "its columns are 'content'"]);
    refused("wrong_type.parquet", &["column 'text'", "INT64", "text is needed"]);
    refused("wrong_type_list.parquet", &["column 'text'", "lists of text", "text is needed"]);
}

#[test]
fn no_rows_are_refused() {
    refused("no_rows.parquet", &["has no rows"]);
}

#[test]
fn null_texts_spoil_only_themselves() {
    let dataset = open("null_texts.parquet").unwrap();
    let rows = rows(&dataset);
    let nulls: Vec<u64> = [8, 15, 17, 32, 63, 72, 97].into_iter().chain(100..200).collect();
    assert_eq!(bad_rows(&rows), nulls);
    for (row, result) in rows {
        if let Err(error) = result {
            let (row, group) = (format!("row {row} "), format!("(row group {})", row / 100));
            one_sentence(&error, "null_texts.parquet", &[&row, &group, "column 'text' is null"]);
        }
    }
}

#[test]
fn empty_texts_are_examples_without_tokens() {
    let dataset = open("empty_strings.parquet").unwrap();
    let rows = rows(&dataset);
    let empty: Vec<u64> =
        rows.iter().filter(|(_, result)| matches!(result, Ok(0))).map(|(row, _)| *row).collect();
    assert_eq!(empty, [3, 12, 26, 48, 49, 55, 57, 60, 62, 77, 83, 97]);
    assert!(bad_rows(&rows).is_empty());
}

#[test]
fn invalid_utf8_spoils_only_its_rows_with_and_without_annotation() {
    for name in ["invalid_utf8_binary.parquet", "invalid_utf8_string.parquet"] {
        let rows = rows(&open(name).unwrap());
        assert_eq!(rows.len(), 100);
        assert_eq!(bad_rows(&rows), [0, 97, 98], "{name}");
        for row in [0, 97, 98] {
            let error = rows[&row].as_ref().unwrap_err();
            one_sentence(error, name, &[&format!("row {row} "), "row group", "not valid UTF-8"]);
        }
    }
}

#[test]
fn a_huge_document_is_a_row() {
    let dataset = open("huge_document.parquet").unwrap();
    assert_eq!(dataset.len(), 51);
    let lengths: Vec<usize> =
        (0..51).map(|row| dataset.example(row).unwrap().unwrap().tokens.len()).collect();
    assert!(lengths[32] > 100_000);
}

#[test]
fn a_corrupt_page_spoils_its_row_group() {
    for (name, reason) in
        [("corrupt_page_data.parquet", "is damaged"), ("corrupt_page_crc.parquet", "CRC checksum mismatch")]
    {
        let rows = rows(&open(name).unwrap());
        assert_eq!(rows.len(), 400);
        assert_eq!(bad_rows(&rows), (100..200).collect::<Vec<_>>(), "{name}");
        one_sentence(rows[&150].as_ref().unwrap_err(), name, &["row group 1 (rows 100..=199)", reason]);
    }
}

#[test]
fn all_bad_files_of_a_set_are_told_at_once() {
    let dir = test_support::data_dir().join("bad");
    let message = open_path(&dir).unwrap_err().to_string();
    for name in ["truncated", "zero_byte", "wrong_column", "wrong_type_list", "corrupt_footer_metadata"] {
        let lines = message.lines().filter(|line| line.contains(&format!("{name}.parquet")));
        assert_eq!(lines.count(), 1, "{name}: {message}");
    }
    assert!(open("none*.parquet").unwrap_err().is_config());
}

/// Flipped bytes and cuts anywhere in real files: any answer but a panic, and no row count that is not the file's.
#[test]
fn no_damage_panics() {
    let sources = [
        ("bad/null_texts.parquet", Columns::Language),
        ("bad/corrupt_page_crc.parquet", Columns::Language),
        ("owt-gpt2-1024-mini/validation-00001-of-00002.parquet", Columns::Language),
    ];
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Arc::new(Tokenizer::numbers(60_000));
    let mut rng = data_pipeline::keyed_rng(11, data_pipeline::Purpose::Drop, 0, 0);
    let mut below = |n: usize| data_pipeline::uniform_below(&mut rng, n as u64) as usize;
    let mut refused = 0;
    for (name, columns) in sources {
        let sound = std::fs::read(test_support::data_dir().join(name)).unwrap();
        let footer =
            u32::from_le_bytes(sound[sound.len() - 8..sound.len() - 4].try_into().unwrap()) as usize + 8;
        for round in 0..400 {
            let mut bytes = sound.clone();
            match round % 4 {
                // Footers are small but hold all that steers the reader.
                0 | 1 => {
                    for _ in 0..1 + below(3) {
                        let at = bytes.len() - 1 - below(footer);
                        bytes[at] = below(256) as u8;
                    }
                }
                2 => {
                    let at = below(bytes.len());
                    bytes[at] ^= 1 << below(8);
                    // Page headers lie at the starts of pages.
                    let at = 4 + below(60);
                    bytes[at] = below(256) as u8;
                }
                _ => bytes.truncate(below(bytes.len())),
            }
            let path = dir.path().join("damaged.parquet");
            std::fs::write(&path, &bytes).unwrap();
            match ParquetDataset::open(
                path.to_str().unwrap(),
                &tokenizer,
                ParquetOptions { columns, ..options() },
            ) {
                Ok(dataset) => {
                    for row in (0..dataset.len()).step_by(37).take(64) {
                        refused += usize::from(dataset.example(row).is_err());
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("damaged.parquet"), "{error}");
                }
            }
        }
    }
    assert!(refused > 600, "{refused}");
}
