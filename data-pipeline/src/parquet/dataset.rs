//! The rows of a set of Parquet files in the order of the files, each found by arithmetic over the row groups.

use std::sync::Arc;

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::{
    cache::GroupCache,
    columns::{Columns, RowColumns},
    decode::{BadRow, Group, Rows, Segments},
    files::locate,
    index::FileIndex,
};
use crate::{
    config::Detokenizer,
    dataset::{Dataset, Example, SourceFile},
    detokenize::detokenize_lm1b,
    error::{Error, Result, RowAddress},
    tokenizer::Tokenizer,
};

/// Decoded row groups may take this many bytes per data set.
const CACHE_BYTES: usize = 512 << 20;
/// Windows of the global order whose row groups are kept.
const CACHE_WINDOWS: usize = 4;

/// How rows become examples.
#[derive(Debug, Clone)]
pub struct ParquetOptions {
    /// The columns that are read.
    pub columns: Columns,
    /// What is undone to a text before it is tokenised.
    pub detokenizer: Detokenizer,
    /// Keep the first so many ids of a row's tokens (none: all).
    pub max_tokens: Option<usize>,
    /// Row groups that are read at random with one another; four times as many stay decoded.
    pub window_groups: usize,
}

/// Parquet files as a [`Dataset`].
#[derive(Debug)]
pub struct ParquetDataset {
    files: Vec<FileIndex>,
    groups: Vec<GroupAddress>,
    /// Rows of every group.
    counts: Vec<u64>,
    /// First row of every group.
    starts: Vec<u64>,
    len: u64,
    tokenizer: Arc<Tokenizer>,
    options: ParquetOptions,
    cache: GroupCache<Group>,
    fingerprint: String,
}

/// Where a group of rows lies; groups without rows are left out.
#[derive(Debug, Clone, Copy)]
struct GroupAddress {
    file: usize,
    row_group: usize,
    first_row_in_file: u64,
}

impl ParquetDataset {
    /// Opens a file, the `*.parquet` files of a directory, or the files that match a glob; reads all footers.
    ///
    /// # Errors
    /// When nothing matches, a footer is damaged, a column is missing or of another type (one sentence for each bad
    /// file), or no file has rows.
    pub fn open(location: &str, tokenizer: &Arc<Tokenizer>, options: ParquetOptions) -> Result<Self> {
        let files = open_files(location, options.columns)?;
        let (mut groups, mut counts, mut starts, mut len) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        for (file, index) in files.iter().enumerate() {
            let mut first_row_in_file = 0;
            for (row_group, &rows) in index.rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
                groups.push(GroupAddress { file, row_group, first_row_in_file });
                counts.push(rows);
                starts.push(len);
                first_row_in_file += rows;
                len = len.checked_add(rows).ok_or_else(|| {
                    Error::Setting(format!("'{location}' claims more than 2^64 rows; split the set"))
                })?;
            }
        }
        if len == 0 {
            return Err(Error::NoRows { location: location.to_owned() });
        }
        warn_of_large_windows(location, &files, &groups, options.window_groups);
        if options.detokenizer != Detokenizer::None && files.iter().any(|file| file.columns.tokens.is_ids()) {
            tracing::warn!("'{location}' holds token ids: data.detokenizer has no effect on them");
        }
        let cache =
            GroupCache::new(options.window_groups.saturating_mul(CACHE_WINDOWS), CACHE_BYTES, Group::bytes);
        let fingerprint = fingerprint(&files, tokenizer, &options);
        let tokenizer = tokenizer.clone();
        Ok(Self { files, groups, counts, starts, len, tokenizer, options, cache, fingerprint })
    }

    fn tokens(&self, rows: &Rows, at: Place<'_>) -> Result<Vec<u32>> {
        let mut ids = match rows {
            Rows::Ids(rows) => self.values(rows, at)?.to_vec(),
            Rows::Text(rows) => self.encode(self.values(rows, at)?, at)?,
        };
        if let Some(max_tokens) = self.options.max_tokens {
            ids.truncate(max_tokens);
        }
        Ok(ids)
    }

    fn values<'a, T>(&self, rows: &'a Segments<T>, at: Place<'_>) -> Result<&'a [T]> {
        rows.row(at.row).map_err(|bad| match bad {
            BadRow::Null => Error::Null { column: at.column.to_owned(), address: at.address() },
            BadRow::Id(id) => Error::TokenId {
                column: at.column.to_owned(),
                id,
                vocab_size: self.tokenizer.vocab_size(),
                address: at.address(),
            },
        })
    }

    fn encode(&self, bytes: &[u8], at: Place<'_>) -> Result<Vec<u32>> {
        let text = std::str::from_utf8(bytes).map_err(|error| Error::Utf8 {
            column: at.column.to_owned(),
            byte: error.valid_up_to(),
            address: at.address(),
        })?;
        let encoded = match self.options.detokenizer {
            Detokenizer::None => self.tokenizer.encode(text),
            Detokenizer::Lm1b => self.tokenizer.encode(&detokenize_lm1b(text)),
        };
        encoded.map_err(|error| Error::Tokenise { address: at.address(), reason: error.to_string() })
    }
}

/// A row of a column, for errors to name.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a FileIndex,
    group: GroupAddress,
    column: &'a str,
    /// Row within the group.
    row: usize,
}

impl Place<'_> {
    fn address(&self) -> RowAddress {
        RowAddress {
            path: self.file.path.clone(),
            row_group: self.group.row_group,
            row: self.group.first_row_in_file + self.row as u64,
        }
    }
}

impl Dataset for ParquetDataset {
    fn len(&self) -> u64 {
        self.len
    }

    fn groups(&self) -> &[u64] {
        &self.counts
    }

    fn example(&self, row: u64) -> Result<Option<Example>> {
        if row >= self.len {
            return Err(Error::RowOutOfRange { row, len: self.len });
        }
        let index = self.starts.partition_point(|&start| start <= row) - 1;
        let group = self.groups[index];
        let file = &self.files[group.file];
        let decoded = self.cache.get(index, || {
            Group::decode(file, group.row_group, self.tokenizer.vocab_size()).map_err(|reason| {
                Error::RowGroup {
                    path: file.path.clone(),
                    row_group: group.row_group,
                    first_row: group.first_row_in_file,
                    last_row: group.first_row_in_file + self.counts[index] - 1,
                    reason,
                }
            })
        })?;
        let RowColumns { prompt, tokens } = &file.columns;
        let place = |column| Place { file, group, column, row: (row - self.starts[index]) as usize };
        let prompt = match (&decoded.prompt, prompt) {
            (Some(Rows::Ids(rows)), Some(column)) => self.values(rows, place(&column.name))?.to_vec(),
            _ => Vec::new(),
        };
        Ok(Some(Example { prompt, tokens: self.tokens(&decoded.tokens, place(&tokens.name))? }))
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut end = 0;
        let source = |file: &FileIndex| {
            let start = end;
            end += file.rows.iter().sum::<u64>();
            SourceFile {
                path: file.path.display().to_string(),
                rows: start..end,
                fingerprint: file.fingerprint,
                is_text: !file.columns.tokens.is_ids(),
            }
        };
        self.files.iter().map(source).collect()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Reads the footers side by side; all bad files are told at once, in the order of the files.
fn open_files(location: &str, columns: Columns) -> Result<Vec<FileIndex>> {
    let opened: Vec<Result<FileIndex>> =
        locate(location)?.par_iter().map(|path| FileIndex::open(path, columns)).collect();
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for file in opened {
        match file {
            Ok(file) => files.push(file),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(Error::BadFiles(errors)),
    }
}

/// A window that does not fit the cache is decoded again and again; nothing breaks, but training may wait for it.
fn warn_of_large_windows(location: &str, files: &[FileIndex], groups: &[GroupAddress], window_groups: usize) {
    let largest =
        groups.iter().map(|group| files[group.file].decoded_bytes(group.row_group)).max().unwrap_or(0);
    let window = largest.saturating_mul(window_groups.min(groups.len()) as u64);
    if window > CACHE_BYTES as u64 {
        tracing::warn!(
            "row groups of '{location}' are large: a window of {window_groups} may take {} MiB but {} MiB are kept; lower \
             data.window_groups or write smaller row groups",
            window >> 20,
            CACHE_BYTES >> 20
        );
    }
}

fn fingerprint(files: &[FileIndex], tokenizer: &Tokenizer, options: &ParquetOptions) -> String {
    let mut hash = Xxh3::new();
    for file in files {
        hash.update(&file.fingerprint.to_le_bytes());
    }
    let ParquetOptions { columns, detokenizer, max_tokens, window_groups: _ } = options;
    let rules = format!("{} {columns:?} {detokenizer:?} {max_tokens:?}", tokenizer.fingerprint());
    hash.update(rules.as_bytes());
    format!("{:032x}", hash.digest128())
}
