//! Files of other writers: every encoding, page version, compression and form of lists holds the same rows.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use data_pipeline::{Columns, Dataset, Detokenizer, OnBad, ParquetDataset, ParquetOptions, Tokenizer};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, Int32Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

const ROWS: u32 = 1003;

/// The rows that `writers/write.py` writes.
fn ids(row: u32, fixed: bool) -> Vec<u32> {
    let length = match (fixed, row) {
        (true, _) => 5,
        (false, 500) => 3000,
        (false, _) => row * row % 13,
    };
    (0..length).map(|index| (row * 31 + index * 7) % 100 + 7).collect()
}

fn same_rows(path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let options = ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        on_bad_row: OnBad::Error,
        on_bad_file: OnBad::Error,
    };
    let tokenizer = Arc::new(Tokenizer::numbers(100));
    let dataset = ParquetDataset::open(path.to_str().unwrap(), &tokenizer, options)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(dataset.len(), u64::from(ROWS), "{name}");
    for row in 0..ROWS {
        let example = dataset.example(row.into()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(example.unwrap().tokens, ids(row, name.starts_with("fixed")), "{name}, row {row}");
    }
}

#[test]
fn pyarrow_duckdb_and_polars() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/writers/write.py");
    let output = Command::new(test_support::python()).arg(script).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 196);
    paths.iter().for_each(|path| same_rows(path));
}

/// Writes a column in two row groups; `levels` makes (value, definition level, repetition level) of a row.
fn write_levels(
    path: &Path,
    schema: &str,
    compression: Compression,
    levels: impl Fn(&[u32]) -> Vec<(Option<i32>, i16, i16)>,
) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    for rows in [0..500, 500..ROWS] {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let all: Vec<_> = rows.flat_map(|row| levels(&ids(row, false))).collect();
        let values: Vec<i32> = all.iter().filter_map(|(value, ..)| *value).collect();
        let definitions: Vec<i16> = all.iter().map(|(_, definition, _)| *definition).collect();
        let repetitions: Vec<i16> = all.iter().map(|(.., repetition)| *repetition).collect();
        column.typed::<Int32Type>().write_batch(&values, Some(&definitions), Some(&repetitions)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// Lists as old writers nest them. `entry` is the definition level of an element's entry.
#[test]
fn lists_of_two_and_three_levels_with_any_names() {
    let dir = tempfile::tempdir().unwrap();
    for (number, (schema, entry, element)) in [
        // A repeated field alone (protocol buffers).
        ("message m { repeated int32 token_ids; }", 1, 1),
        // Two levels (Thrift, Avro).
        ("message m { optional group token_ids (LIST) { repeated int32 array; } }", 2, 2),
        ("message m { required group token_ids (LIST) { repeated int32 token_ids_tuple; } }", 1, 1),
        // Three levels (Hive, Spark before the standard).
        (
            "message m { optional group token_ids (LIST) { repeated group bag { optional int32 array_element; } } }",
            2,
            3,
        ),
        ("message m { required group token_ids { repeated group list { required int32 item; } } }", 1, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("nested-{number}.parquet"));
        write_levels(&path, schema, Compression::SNAPPY, |ids| {
            let elements = ids.iter().enumerate();
            let mut levels: Vec<_> =
                elements.map(|(index, &id)| (Some(id as i32), element, i16::from(index > 0))).collect();
            if levels.is_empty() {
                levels.push((None, entry - 1, 0));
            }
            levels
        });
        same_rows(&path);
    }
}

/// The LZ4 of Hadoop frames its blocks otherwise than the one of the standard.
#[test]
fn lz4_of_hadoop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hadoop.parquet");
    let schema = Arc::new(parse_message_type("message m { required binary text (STRING); }").unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::LZ4).build());
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let text = |row| {
        let numbers: Vec<String> = ids(row, false).iter().map(|id| (id - 7).to_string()).collect();
        ByteArray::from(numbers.join(" ").as_str())
    };
    let texts: Vec<ByteArray> = (0..ROWS).map(text).collect();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    same_rows(&path);
}
