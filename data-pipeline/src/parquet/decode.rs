//! One row group, decoded into compact buffers; a bad row spoils only itself.

use std::{
    cell::Cell,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader},
    data_type::{ByteArray, ByteArrayType, DataType},
    file::metadata::ColumnChunkMetaData,
    schema::types::ColumnDescriptor,
};

use super::{
    chunk::Chunk,
    columns::{Column, Content},
    index::FileIndex,
    lists::{IdLimits, ids},
    pages::Pages,
};

/// Levels that are decoded at a time, about: they stay in the processor's cache.
pub(super) const LEVELS_AT_A_TIME: usize = 16 << 10;
/// Texts that are decoded at a time. Few, since a text may repeat most of the one before it, so that a page of some megabytes
/// can mean any number of long ones.
const TEXTS_AT_A_TIME: usize = 64;
/// Levels of a row, before any is read.
const FIRST_GUESS: usize = 1 << 10;

/// The wanted columns of a row group.
#[derive(Debug)]
pub(super) struct Group {
    pub prompt: Option<Rows>,
    pub tokens: Rows,
}

/// One column of a row group.
#[derive(Debug)]
pub(super) enum Rows {
    Text(Segments<u8>),
    Ids(Segments<u32>),
}

/// Row i is `values[ends[i - 1]..ends[i]]`, unless it is bad.
#[derive(Debug, Default)]
pub(super) struct Segments<T> {
    pub values: Vec<T>,
    pub ends: Vec<usize>,
    bad: HashMap<usize, BadRow>,
}

/// Why a row has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRow {
    /// It is null or has a null element.
    Null,
    /// It has an id outside the vocabulary.
    Id(i128),
}

impl<T> Segments<T> {
    /// The values of a row.
    pub fn row(&self, row: usize) -> Result<&[T], BadRow> {
        if let Some(bad) = self.bad.get(&row) {
            return Err(*bad);
        }
        let start = row.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        Ok(&self.values[start..self.ends[row]])
    }

    /// The values so far that belong to no row make the next row.
    pub fn end_row(&mut self) {
        self.ends.push(self.values.len());
    }

    /// Marks a row bad; its first defect counts.
    pub fn spoil(&mut self, row: usize, bad: BadRow) {
        self.bad.entry(row).or_insert(bad);
    }

    /// Refuses `more` values if all then take more than `max_bytes`.
    pub fn check_room(&self, more: usize, max_bytes: usize) -> Result<(), String> {
        let bytes = (self.values.len().saturating_add(more)).saturating_mul(size_of::<T>())
            + self.ends.len() * size_of::<usize>()
            + self.bad.len() * size_of::<(usize, BadRow)>();
        if bytes <= max_bytes {
            return Ok(());
        }
        let allowed = max_bytes >> 20;
        Err(format!(
            "it takes more than {allowed} MiB when decoded, which only a larger data.memory_mib allows"
        ))
    }

    /// Gives back the memory that growing took in advance.
    fn shrink(mut self) -> Self {
        self.values.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.bad.shrink_to_fit();
        self
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<T>()
            + self.ends.capacity() * size_of::<usize>()
            + self.bad.capacity() * size_of::<(usize, BadRow)>()
    }
}

impl Group {
    /// Decodes the columns that [`FileIndex::fetch`] gave, each into at most `max_bytes`; ids are checked against the vocabulary.
    /// The error is the decoder's reason.
    pub fn decode(
        file: &FileIndex,
        row_group: usize,
        chunks: Vec<Chunk>,
        vocab_size: usize,
        max_bytes: usize,
    ) -> Result<Self, String> {
        no_panic(|| {
            let rows = usize::try_from(file.rows[row_group]).map_err(|error| error.to_string())?;
            let mut columns = file
                .columns_of(row_group)
                .zip(chunks)
                .map(|(column, chunk)| decode_column(column, chunk, rows, (vocab_size, max_bytes)))
                .collect::<Result<Vec<_>, _>>()?;
            let tokens = columns.pop().ok_or("no column is wanted")?;
            Ok(Self { prompt: columns.pop(), tokens })
        })
    }

    /// Memory the rows take.
    pub fn bytes(&self) -> usize {
        self.prompt.iter().chain([&self.tokens]).map(Rows::bytes).sum()
    }
}

impl Rows {
    fn bytes(&self) -> usize {
        match self {
            Rows::Text(rows) => rows.bytes(),
            Rows::Ids(rows) => rows.bytes(),
        }
    }
}

/// The Parquet decoder panics on some damaged bytes (levels that end early, for one); the file must be named then, too.
/// The reason is one line, though the decoder may quote damaged names.
pub(super) fn no_panic<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    const MAX_REASON: usize = 300;
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    CATCHING.set(false);
    let result = result.unwrap_or_else(|_| Err("the Parquet decoder panicked on it".into()));
    result.map_err(|reason| reason.chars().take(MAX_REASON).flat_map(one_line).collect())
}

fn one_line(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    escaped.is_none().then_some(character).into_iter().chain(escaped.into_iter().flatten())
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught and become an [`Error`](crate::Error): a panic hook that prints or
/// aborts must let it pass.
pub fn panic_becomes_error() -> bool {
    CATCHING.get()
}

fn decode_column(
    (column, metadata): (&Column, &ColumnChunkMetaData),
    chunk: Chunk,
    rows: usize,
    (vocab_size, max_bytes): (usize, usize),
) -> Result<Rows, String> {
    let descriptor = metadata.column_descr_ptr();
    let pages = Pages::new(chunk, metadata, &descriptor, rows).map_err(|error| error.to_string())?;
    if let Content::Ids { .. } = column.content {
        // Before a list is rebuilt, which is read as a whole: its levels may be a few bytes that repeat.
        let levels = usize::try_from(metadata.num_values()).unwrap_or(usize::MAX);
        Segments::<u32>::default().check_room(levels, max_bytes)?;
    }
    match (column.content, get_column_reader(descriptor.clone(), Box::new(pages))) {
        (Content::Text, ColumnReader::ByteArrayColumnReader(reader)) => {
            let out = texts(reader, rows, &descriptor, max_bytes)?;
            Ok(Rows::Text(out.shrink()))
        }
        (Content::Ids { unsigned }, ColumnReader::Int32ColumnReader(reader)) => {
            let out = ids(reader, rows, &descriptor, IdLimits { vocab_size, unsigned, max_bytes })?;
            Ok(Rows::Ids(out.shrink()))
        }
        (Content::Ids { unsigned }, ColumnReader::Int64ColumnReader(reader)) => {
            let out = ids(reader, rows, &descriptor, IdLimits { vocab_size, unsigned, max_bytes })?;
            Ok(Rows::Ids(out.shrink()))
        }
        _ => Err(format!("its column '{}' changed its type", column.name)),
    }
}

fn texts(
    reader: ColumnReaderImpl<ByteArrayType>,
    rows: usize,
    descriptor: &ColumnDescriptor,
    max_bytes: usize,
) -> Result<Segments<u8>, String> {
    let mut out = Segments::default();
    let required = descriptor.max_def_level() == 0;
    read(reader, rows, TEXTS_AT_A_TIME, |definitions, _, values| {
        out.check_room(values.iter().map(ByteArray::len).sum(), max_bytes)?;
        let rows = if required { values.len() } else { definitions.len() };
        let mut values = values.iter();
        for row in 0..rows {
            if definitions.get(row).is_none_or(|&level| level == descriptor.max_def_level()) {
                out.values.extend_from_slice(values.next().ok_or("values are missing")?.data());
            } else {
                out.spoil(out.ends.len(), BadRow::Null);
            }
            out.end_row();
        }
        Ok(())
    })?;
    Ok(out)
}

/// Hands whole rows, `most` at a time, to `take` as (definition levels, repetition levels, values), and checks that there are as many
/// rows as the footer claims.
pub(super) fn read<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    most: usize,
    mut take: impl FnMut(&[i16], &[i16], &[T::T]) -> Result<(), String>,
) -> Result<(), String> {
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (mut done, mut levels) = (0, 0);
    loop {
        definitions.clear();
        repetitions.clear();
        values.clear();
        // As many rows as the ones so far let expect. One more than claimed is asked for at the end: none must come.
        let fitting = LEVELS_AT_A_TIME.saturating_mul(done + 1) / (levels + FIRST_GUESS);
        let wanted = (rows - done).clamp(1, fitting.clamp(1, most));
        let (records, _, read) = reader
            .read_records(wanted, Some(&mut definitions), Some(&mut repetitions), &mut values)
            .map_err(|error| error.to_string())?;
        match (records, done == rows) {
            (0, true) => return Ok(()),
            (0, false) => return Err(format!("it ends after {done} of {rows} rows")),
            (_, true) => return Err(format!("it has more than the {rows} rows that the footer claims")),
            _ => {}
        }
        take(&definitions, &repetitions, &values)?;
        done += records;
        levels += read;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path, sync::Arc};

    use arrow::{
        array::{ArrayRef, DictionaryArray, Int8Array, ListArray, RecordBatch, StringArray, new_null_array},
        datatypes::{DataType, Field, Int32Type, Schema},
    };
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::{
        parquet::{columns::Columns, index::read_footer},
        source::Sources,
    };

    /// Decodes a file of one column and one row group into so many bytes.
    fn decode(column: &str, array: ArrayRef, max_bytes: usize) -> (Result<Group, String>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.parquet");
        let schema = Arc::new(Schema::new(vec![Field::new(column, array.data_type().clone(), true)]));
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), schema.clone(), None).unwrap();
        writer.write(&RecordBatch::try_new(schema, vec![array]).unwrap()).unwrap();
        writer.close().unwrap();
        let source = Sources::default().list(&path.to_str().unwrap().into()).unwrap().remove(0);
        let footer = read_footer(&source).unwrap();
        let file = FileIndex::new(&source, &footer, Columns::Language).unwrap();
        assert_eq!(file.path, Path::new(&source.name));
        (Group::decode(&file, 0, file.fetch(0).unwrap(), 100, max_bytes), source.size)
    }

    #[test]
    fn a_small_file_may_not_ask_for_any_memory() {
        let text = "a".repeat(16 << 10);
        let keys = Int8Array::from(vec![0i8; 4000]);
        let repeated = DictionaryArray::try_new(keys, Arc::new(StringArray::from(vec![text]))).unwrap();
        let same_ids = [Some(vec![Some(7); 3_000_000])];
        let ids = ListArray::from_iter_primitive::<Int32Type, _, _>(same_ids);
        let nulls = new_null_array(&DataType::Utf8, 200_000);
        let cases: [(&str, ArrayRef); 3] =
            [("text", Arc::new(repeated)), ("token_ids", Arc::new(ids)), ("text", nulls)];
        for (column, array) in cases {
            let (refused, size) = decode(column, array.clone(), 8 << 20);
            let reason = refused.unwrap_err();
            assert!(reason.contains("more than 8 MiB") && reason.contains("data.memory_mib"), "{reason}");
            assert!(size < 100_000, "{size} bytes");
            decode(column, array, 1 << 30).0.unwrap();
        }
    }

    #[test]
    fn decoded_rows_take_no_more_memory_than_they_need() {
        let texts: Vec<String> = (0..3000).map(|row| format!("text {row}")).collect();
        let bytes: usize = texts.iter().map(String::len).sum();
        let (group, _) = decode("text", Arc::new(StringArray::from(texts)), 1 << 30);
        assert_eq!(group.unwrap().bytes(), bytes + 3000 * size_of::<usize>());
    }
}
