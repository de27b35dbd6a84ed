//! The footer of a file, checked before any row is read: sizes that the footer claims must fit the file.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    chunk::Chunk,
    columns::{Column, Columns, Content, RowColumns},
    decode::no_panic,
    thrift::schema_is_plausible,
};
use crate::{
    error::{Error, Result},
    source::SourceFile,
};

/// Key of a footer's metadata: the fingerprint of the tokenizer whose ids a file holds.
pub(crate) const TOKENIZER_KEY: &str = "ilm.tokenizer";
/// First and last bytes of every Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";
/// The footer's length and the magic.
const TAIL: u64 = 8;
/// Rows of the largest row group that is believed: the ends of so many rows take a gibibyte.
const MAX_GROUP_ROWS: u64 = 1 << 27;
/// Characters of a tokenizer's fingerprint; all known ones are shorter.
const MAX_FINGERPRINT: usize = 64;
/// Bytes that are read from a file's end at once: most footers are smaller.
const FIRST_READ: u64 = 64 << 10;

/// What is known of a file without reading its rows.
#[derive(Debug)]
pub(super) struct FileIndex {
    pub path: PathBuf,
    pub source: SourceFile,
    pub columns: RowColumns,
    /// What the footer says of these columns, by row group and in the order of [`RowColumns::all`]. What it says of others
    /// is not kept: in thousands of files of many columns it is much.
    chunks: Vec<Vec<ColumnChunkMetaData>>,
    /// Fingerprint of the tokenizer whose ids these are, if the file says.
    pub tokenizer: Option<String>,
    /// Rows of every row group.
    pub rows: Vec<u64>,
    /// Hash of the footer, which holds sizes and statistics of every column chunk.
    pub footer: u128,
    /// Hash of name (without folders), length and footer.
    pub fingerprint: u128,
}

impl FileIndex {
    /// Checks the footer of a file.
    pub fn new(source: &SourceFile, footer: &[u8], columns: Columns) -> Result<Self> {
        let path = Path::new(&source.name);
        let bad = |reason: String| Error::BadFile { path: path.to_owned(), reason };
        let metadata = no_panic(|| {
            if !schema_is_plausible(footer) {
                return Err("its footer is damaged (the schema makes no sense)".into());
            }
            ParquetMetaDataReader::decode_metadata(footer)
                .map_err(|error| format!("its footer is damaged ({error})"))
        })
        .map_err(bad)?;
        let columns = columns.resolve(metadata.file_metadata().schema_descr(), path)?;
        let data = source.size.saturating_sub(TAIL + footer.len() as u64);
        let rows = check(&metadata, &columns, data).map_err(bad)?;
        let wanted = |group: &RowGroupMetaData| {
            columns.all().map(|column| group.column(column.leaf).clone()).collect::<Vec<_>>()
        };
        let chunks = metadata.row_groups().iter().map(wanted).collect();
        let identity = [source.file_name().as_bytes(), &source.size.to_le_bytes(), footer].concat();
        Ok(Self {
            path: path.to_owned(),
            source: source.clone(),
            tokenizer: tokenizer(&metadata),
            chunks,
            columns,
            rows,
            footer: xxh3_128(footer),
            fingerprint: xxh3_128(&identity),
        })
    }

    /// The bytes of a row group's columns, in the order of [`RowColumns::all`].
    pub fn fetch(&self, row_group: usize) -> Result<Vec<Chunk>> {
        // Checked when the file was opened: none of them is missing.
        let ranges: Vec<Range<u64>> = self.chunks[row_group].iter().filter_map(chunk_range).collect();
        let bytes = self.source.read(&ranges)?;
        Ok(ranges.iter().zip(bytes).map(|(range, bytes)| Chunk::new(range.start, bytes)).collect())
    }

    /// Bytes of a row group's columns when decoded, as the footer claims.
    pub fn decoded_bytes(&self, row_group: usize) -> u64 {
        let bytes = |(column, chunk): (&Column, &ColumnChunkMetaData)| match column.content {
            Content::Text => chunk.uncompressed_size().max(0) as u64,
            Content::Ids { .. } => (chunk.num_values().max(0) as u64).saturating_mul(4),
        };
        self.columns_of(row_group).map(bytes).fold(0, u64::saturating_add)
    }

    /// The columns, each with what the footer says of its part in a row group.
    pub fn columns_of(&self, row_group: usize) -> impl Iterator<Item = (&Column, &ColumnChunkMetaData)> {
        self.columns.all().zip(&self.chunks[row_group])
    }
}

fn tokenizer(metadata: &ParquetMetaData) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    // Printed when it differs, so a damaged one is cut short and kept on a line.
    let plain = |value: &String| value.chars().take(MAX_FINGERPRINT).flat_map(char::escape_default).collect();
    pairs.iter().find(|pair| pair.key == TOKENIZER_KEY)?.value.as_ref().map(plain)
}

/// Reads a file's footer, without decoding it.
pub(super) fn read_footer(source: &SourceFile) -> Result<Bytes> {
    let bad = |reason: String| Error::BadFile { path: PathBuf::from(&source.name), reason };
    let length = source.size;
    if length < TAIL + MAGIC.len() as u64 {
        return Err(bad(format!("it has only {length} bytes")));
    }
    let first = length.saturating_sub(FIRST_READ);
    let end = source.read_one(first..length)?;
    let [.., a, b, c, d, m0, m1, m2, m3] = *end else {
        return Err(bad(format!("it has only {} bytes", end.len())));
    };
    if [m0, m1, m2, m3] != *MAGIC {
        return Err(bad("it does not end with the mark 'PAR1' (cut off, or another format)".into()));
    }
    let claimed = u64::from(u32::from_le_bytes([a, b, c, d]));
    if claimed > length - TAIL {
        return Err(bad(format!("it claims a footer of {claimed} bytes in a file of {length}")));
    }
    let start = length - TAIL - claimed;
    match start.checked_sub(first) {
        Some(start) => Ok(end.slice(start as usize..end.len() - TAIL as usize)),
        None => source.read_one(start..length - TAIL),
    }
}

/// Rows of every row group, when all that the footer claims of the wanted columns lies within the first `data` bytes.
fn check(
    metadata: &ParquetMetaData,
    columns: &RowColumns,
    data: u64,
) -> std::result::Result<Vec<u64>, String> {
    let leaves = metadata.file_metadata().schema_descr().num_columns();
    let mut rows = Vec::with_capacity(metadata.num_row_groups());
    let mut total = 0i64;
    for (index, group) in metadata.row_groups().iter().enumerate() {
        if group.num_columns() != leaves {
            return Err(format!(
                "its row group {index} has {} columns instead of {leaves}",
                group.num_columns()
            ));
        }
        let count = u64::try_from(group.num_rows())
            .ok()
            .filter(|&rows| rows <= MAX_GROUP_ROWS)
            .ok_or_else(|| format!("its row group {index} claims {} rows", group.num_rows()))?;
        if !columns.all().all(|column| lies_within(group, column.leaf, data)) {
            return Err(format!("its row group {index} claims bytes outside the file"));
        }
        total = total
            .checked_add(group.num_rows())
            .ok_or_else(|| "its row groups claim more than 2^63 rows".to_owned())?;
        rows.push(count);
    }
    let claimed = metadata.file_metadata().num_rows();
    if claimed != total {
        return Err(format!("its footer claims {claimed} rows but its row groups hold {total}"));
    }
    Ok(rows)
}

fn lies_within(group: &RowGroupMetaData, leaf: usize, data: u64) -> bool {
    chunk_range(group.column(leaf)).is_some_and(|range| range.end <= data)
}

fn chunk_range(chunk: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let start = u64::try_from(start).ok()?;
    let end = start.checked_add(u64::try_from(chunk.compressed_size()).ok()?)?;
    Some(start..end)
}
