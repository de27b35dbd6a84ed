//! The footer of a file, checked before any row is read: sizes that the footer claims must fit the file.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    columns::{Columns, RowColumns},
    decode::no_panic,
    thrift::schema_is_plausible,
};
use crate::error::{Error, Result};

/// First and last bytes of every Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";
/// The footer's length and the magic.
const TAIL: u64 = 8;
/// Rows of the largest row group that is believed: the ends of so many rows take a gibibyte.
const MAX_GROUP_ROWS: u64 = 1 << 27;

/// What is known of a file without reading its rows.
#[derive(Debug)]
pub(super) struct FileIndex {
    pub path: PathBuf,
    pub metadata: Arc<ParquetMetaData>,
    pub columns: RowColumns,
    /// Rows of every row group.
    pub rows: Vec<u64>,
    /// Hash of name, length and footer: the footer holds sizes and statistics of every column chunk.
    pub fingerprint: u128,
}

impl FileIndex {
    /// Reads and checks the footer.
    pub fn open(path: &Path, columns: Columns) -> Result<Self> {
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let bad = |reason: String| Error::BadFile { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io("open"))?;
        let length = file.metadata().map_err(io("read"))?.len();
        let footer = read_footer(&mut file, length).map_err(io("read"))?.map_err(bad)?;
        let metadata = no_panic(|| {
            if !schema_is_plausible(&footer) {
                return Err("its footer is damaged (the schema makes no sense)".into());
            }
            ParquetMetaDataReader::decode_metadata(&footer)
                .map_err(|error| format!("its footer is damaged ({error})"))
        })
        .map_err(bad)?;
        let columns = columns.resolve(metadata.file_metadata().schema_descr(), path)?;
        let rows = check(&metadata, &columns, length - TAIL - footer.len() as u64).map_err(bad)?;

        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let identity = [name, &length.to_le_bytes(), &footer].concat();
        Ok(Self {
            path: path.to_owned(),
            metadata: Arc::new(metadata),
            columns,
            rows,
            fingerprint: xxh3_128(&identity),
        })
    }

    /// Bytes of a row group's columns when decompressed, as the footer claims.
    pub fn decoded_bytes(&self, row_group: usize) -> u64 {
        let group = self.metadata.row_group(row_group);
        self.columns
            .all()
            .map(|column| group.column(column.leaf).uncompressed_size().max(0) as u64)
            .fold(0, u64::saturating_add)
    }
}

/// The footer's bytes; the inner error says what is wrong with the file.
fn read_footer(file: &mut File, length: u64) -> std::io::Result<std::result::Result<Vec<u8>, String>> {
    if length < TAIL + MAGIC.len() as u64 {
        return Ok(Err(format!("it has only {length} bytes")));
    }
    let mut tail = [0; TAIL as usize];
    file.seek(SeekFrom::Start(length - TAIL))?;
    file.read_exact(&mut tail)?;
    if &tail[4..] != MAGIC {
        return Ok(Err("it does not end with the mark 'PAR1' (cut off, or another format)".into()));
    }
    let claimed = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if claimed > length - TAIL {
        return Ok(Err(format!("it claims a footer of {claimed} bytes in a file of {length}")));
    }
    let mut footer = vec![0; claimed as usize];
    file.seek(SeekFrom::Start(length - TAIL - claimed))?;
    file.read_exact(&mut footer)?;
    Ok(Ok(footer))
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
    let chunk: &ColumnChunkMetaData = group.column(leaf);
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    match (u64::try_from(start), u64::try_from(chunk.compressed_size())) {
        (Ok(start), Ok(size)) => start.checked_add(size).is_some_and(|end| end <= data),
        _ => false,
    }
}
