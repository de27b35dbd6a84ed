//! One shard of token ids: a Parquet file that appears under its name only when it is complete.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, Int32Array, Int32Builder, Int64Builder, ListArray, RecordBatch},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Schema},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::{metadata::KeyValue, properties::WriterProperties},
};

use crate::{
    error::{Error, Result},
    parquet::TOKENIZER_KEY,
};

/// Tokens that are handed to the encoder at a time; more wait only while one row has more.
const BATCH_TOKENS: usize = 1 << 18;

/// Writes rows of ids.
pub(super) struct ShardWriter {
    path: PathBuf,
    partial: PathBuf,
    writer: ArrowWriter<File>,
    schema: Arc<Schema>,
    has_pieces: bool,
    ids: Vec<i32>,
    lengths: Vec<usize>,
    documents: Int64Builder,
    chunks: Int32Builder,
}

impl ShardWriter {
    /// `has_pieces`: rows are pieces of documents and get the columns `doc_id` and `chunk`. The footer names the tokenizer by its
    /// fingerprint.
    pub fn create(path: &Path, row_group_rows: usize, has_pieces: bool, tokenizer: String) -> Result<Self> {
        let partial = path.with_extension("partial");
        let element = Arc::new(Field::new_list_field(DataType::Int32, false));
        let mut fields = vec![Field::new("token_ids", DataType::List(element), false)];
        if has_pieces {
            fields.push(Field::new("doc_id", DataType::Int64, false));
            fields.push(Field::new("chunk", DataType::Int32, false));
        }
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(true)
            .set_max_row_group_row_count(Some(row_group_rows))
            .set_key_value_metadata(Some(vec![KeyValue::new(TOKENIZER_KEY.to_owned(), tokenizer)]))
            .build();
        let io = |action| {
            let path = partial.clone();
            move |source| Error::Io { action, path, source }
        };
        let file = File::create(&partial).map_err(io("create"))?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))
            .map_err(|error| cannot_write(path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            writer,
            schema,
            has_pieces,
            ids: Vec::new(),
            lengths: Vec::new(),
            documents: Int64Builder::new(),
            chunks: Int32Builder::new(),
        })
    }

    /// Adds a row: piece `chunk` of a document, which is a row of the input.
    pub fn push(&mut self, ids: &[u32], document: u64, chunk: usize) -> Result<()> {
        let signed = |id: u32| {
            i32::try_from(id).map_err(|_| Error::Write {
                path: self.path.clone(),
                reason: format!("token id {id} does not fit the column's 32 bits"),
            })
        };
        for &id in ids {
            self.ids.push(signed(id)?);
        }
        self.lengths.push(ids.len());
        if self.has_pieces {
            self.documents.append_value(document as i64);
            self.chunks.append_value(chunk as i32);
        }
        if self.ids.len() >= BATCH_TOKENS { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> Result<()> {
        let element = Arc::new(Field::new_list_field(DataType::Int32, false));
        let offsets = OffsetBuffer::from_lengths(self.lengths.drain(..));
        let ids = Arc::new(Int32Array::from(std::mem::take(&mut self.ids)));
        let batch = ListArray::try_new(element, offsets, ids, None).and_then(|ids| {
            let mut columns: Vec<ArrayRef> = vec![Arc::new(ids)];
            if self.has_pieces {
                columns.push(Arc::new(self.documents.finish()));
                columns.push(Arc::new(self.chunks.finish()));
            }
            RecordBatch::try_new(self.schema.clone(), columns)
        });
        let written = batch.map_err(ParquetError::from).and_then(|batch| self.writer.write(&batch));
        written.map_err(|error| cannot_write(&self.path, &error))
    }

    /// Writes the footer and gives the file its name. Returns its size in bytes.
    pub fn finish(mut self) -> Result<u64> {
        if !self.lengths.is_empty() {
            self.write_batch()?;
        }
        let file = self.writer.into_inner().map_err(|error| cannot_write(&self.path, &error))?;
        let io = |source| Error::Io { action: "write", path: self.path.clone(), source };
        file.sync_all().map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        std::fs::rename(&self.partial, &self.path).map_err(io)?;
        Ok(bytes)
    }
}

fn cannot_write(path: &Path, error: &ParquetError) -> Error {
    Error::Write { path: path.to_owned(), reason: error.to_string() }
}
