//! The rows of a set of Parquet files in the order of the files, each found by arithmetic over the row groups.

use std::{path::Path, sync::Arc};

use xxhash_rust::xxh3::Xxh3;

use super::{
    columns::{Columns, RowColumns},
    decode::{BadRow, Group, Rows, Segments},
    files::open_files,
    groups::{GroupAddress, RowGroups},
    index::FileIndex,
    memory::Reader,
    policy::Skips,
};
use crate::{
    WARNINGS_OF_A_SET,
    config::{Detokenizer, OnBad},
    dataset::{DataFile, Dataset, Example},
    detokenize::detokenize_lm1b,
    error::{Error, Result, RowAddress},
    manifest::{DatasetManifest, FileSummary},
    source::Location,
    tokenizer::Tokenizer,
};

/// How rows become examples.
#[derive(Debug, Clone)]
pub struct ParquetOptions {
    /// The columns that are read.
    pub columns: Columns,
    /// What is undone to a text before it is tokenised.
    pub detokenizer: Detokenizer,
    /// Keep the first so many ids of a row's tokens (none: all).
    pub max_tokens: Option<usize>,
    /// What a bad row does.
    pub on_bad_row: OnBad,
    /// What a damaged file or row group does.
    pub on_bad_file: OnBad,
}

/// Parquet files as a [`Dataset`].
#[derive(Debug)]
pub struct ParquetDataset {
    groups: RowGroups,
    /// Kept as long as a data set uses it, for others to share.
    _reader: Arc<Reader>,
    /// Rows of every group.
    counts: Vec<u64>,
    /// First row of every group.
    starts: Vec<u64>,
    len: u64,
    tokenizer: Arc<Tokenizer>,
    options: ParquetOptions,
    skips: Skips,
    fingerprint: String,
}

impl ParquetDataset {
    /// Opens one place with the usual way to reach it; see [`ParquetDataset::open_from`].
    ///
    /// # Errors
    /// As [`ParquetDataset::open_from`].
    pub fn open(location: &str, tokenizer: &Arc<Tokenizer>, options: ParquetOptions) -> Result<Self> {
        Self::open_from(&Arc::default(), &location.into(), None, tokenizer, options)
    }

    /// Opens the files of a location; reads all footers, but for those that the file `index` holds already. That file
    /// is written anew when it lacks some; it may be deleted, damaged or shared by processes.
    ///
    /// # Errors
    /// When nothing matches, a store does not answer, a footer is damaged, a column is missing or of another type (one
    /// sentence for each bad file, unless such files are skipped and others are sound), ids are another tokenizer's, or no file
    /// has rows.
    pub fn open_from(
        reader: &Arc<Reader>,
        location: &Location,
        index: Option<&Path>,
        tokenizer: &Arc<Tokenizer>,
        options: ParquetOptions,
    ) -> Result<Self> {
        let files = open_files(&reader.sources, location, index, options.columns, options.on_bad_file)?;
        files.iter().try_for_each(|file| check_tokenizer(file, tokenizer))?;
        let (mut groups, mut counts, mut starts, mut len) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        for (file, index) in files.iter().enumerate() {
            let mut first_row_in_file = 0;
            for (row_group, &rows) in index.rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
                groups.push(GroupAddress { file, row_group, first_row_in_file, rows });
                counts.push(rows);
                starts.push(len);
                first_row_in_file += rows;
                len = len.checked_add(rows).ok_or_else(|| {
                    Error::Setting(format!("'{location}' claims more than 2^64 rows; split the set"))
                })?;
            }
        }
        if len == 0 {
            return Err(Error::NoRows { location: location.to_string() });
        }
        if options.detokenizer != Detokenizer::None && files.iter().any(|file| file.columns.tokens.is_ids()) {
            tracing::warn!(
                target: WARNINGS_OF_A_SET,
                "'{location}' holds token ids: data.detokenizer has no effect on them"
            );
        }
        let fingerprint = fingerprint(&files, tokenizer, &options);
        let skips = Skips::new(&location.to_string(), options.on_bad_row, options.on_bad_file, &counts);
        let tokenizer = tokenizer.clone();
        let (vocab_size, concurrency) = (tokenizer.vocab_size(), reader.sources.concurrency());
        let groups = RowGroups::new(&reader.memory, files, groups, vocab_size, concurrency);
        Ok(Self {
            groups,
            _reader: reader.clone(),
            counts,
            starts,
            len,
            tokenizer,
            options,
            skips,
            fingerprint,
        })
    }

    fn group_of(&self, row: u64) -> usize {
        self.starts.partition_point(|&start| start <= row) - 1
    }

    /// The example of a row. The row's group stays in `held`, and is taken from there if it is there already.
    fn example_of(&self, row: u64, held: &mut Option<(usize, Arc<Group>)>) -> Result<Option<Example>> {
        if row >= self.len {
            return Err(Error::RowOutOfRange { row, len: self.len });
        }
        let index = self.group_of(row);
        if self.skips.is_damaged(index) {
            return Ok(None);
        }
        let row = (row - self.starts[index]) as usize;
        match self.read(index, row, held) {
            Ok(example) => Ok(Some(example)),
            Err(error) => self.skips.skip(index, row, error).map(|()| None),
        }
    }

    fn read(&self, index: usize, row: usize, held: &mut Option<(usize, Arc<Group>)>) -> Result<Example> {
        let (group, file) = self.groups.find(index);
        let decoded = match held {
            Some((number, decoded)) if *number == index => decoded.clone(),
            _ => {
                // Before another one is decoded: two at a time are more than the rows need.
                *held = None;
                held.insert((index, self.groups.get(index)?)).1.clone()
            }
        };
        let place = |column| Place { file, group, column, row };
        let RowColumns { prompt, tokens } = &file.columns;
        let prompt = match (&decoded.prompt, prompt) {
            (Some(Rows::Ids(rows)), Some(column)) => self.values(rows, place(&column.name))?.to_vec(),
            _ => Vec::new(),
        };
        Ok(Example { prompt, tokens: self.tokens(&decoded.tokens, place(&tokens.name))? })
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
        self.example_of(row, &mut None)
    }

    fn each_example(
        &self,
        rows: &mut dyn Iterator<Item = u64>,
        take: &mut dyn FnMut(u64, Result<Option<Example>>) -> bool,
    ) {
        let mut held = None;
        rows.take_while(|&row| take(row, self.example_of(row, &mut held))).for_each(drop);
    }

    fn group_bytes(&self, group: usize) -> usize {
        self.groups.decoded_bytes(group)
    }

    fn skipped(&self) -> u64 {
        self.skips.count()
    }

    fn read_ahead(&self, rows: &[u64]) {
        let mut groups: Vec<usize> =
            rows.iter().filter(|&&row| row < self.len).map(|&row| self.group_of(row)).collect();
        groups.dedup();
        self.groups.read_ahead(groups.into_iter());
    }

    fn files(&self) -> Vec<DataFile> {
        let mut end = 0;
        let source = |file: &FileIndex| {
            let start = end;
            end += file.rows.iter().sum::<u64>();
            DataFile {
                path: file.path.display().to_string(),
                rows: start..end,
                fingerprint: file.fingerprint,
                is_text: !file.columns.tokens.is_ids(),
            }
        };
        self.groups.files().iter().map(source).collect()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn manifest(&self) -> DatasetManifest {
        let summary = |file: &FileIndex| FileSummary {
            name: file.source.file_name().to_owned(),
            bytes: file.source.size,
            rows: file.rows.iter().sum(),
            footer: format!("{:032x}", file.footer),
        };
        DatasetManifest {
            files: self.groups.files().iter().map(summary).collect(),
            rules: rules(&self.tokenizer, &self.options).map(|(name, rule)| (name.to_owned(), rule)).into(),
        }
    }
}

/// Ids of another tokenizer often lie within the vocabulary, and then nothing but the numbers would tell. Bytes are asked for
/// by those who want texts, and say so themselves.
fn check_tokenizer(file: &FileIndex, tokenizer: &Tokenizer) -> Result<()> {
    let ours = tokenizer.fingerprint();
    match &file.tokenizer {
        Some(theirs)
            if file.columns.tokens.is_ids() && *theirs != ours && !matches!(tokenizer, Tokenizer::Bytes) =>
        {
            Err(Error::OtherTokenizer { path: file.path.clone(), theirs: theirs.clone(), ours })
        }
        _ => Ok(()),
    }
}

fn fingerprint(files: &[FileIndex], tokenizer: &Tokenizer, options: &ParquetOptions) -> String {
    let mut hash = Xxh3::new();
    for file in files {
        hash.update(&file.fingerprint.to_le_bytes());
    }
    let rules = rules(tokenizer, options).map(|(_, rule)| rule).join(" ");
    hash.update(rules.as_bytes());
    format!("{:032x}", hash.digest128())
}

/// What else than the files makes the examples.
fn rules(tokenizer: &Tokenizer, options: &ParquetOptions) -> [(&'static str, String); 4] {
    let ParquetOptions { columns, detokenizer, max_tokens, on_bad_row: _, on_bad_file: _ } = options;
    [
        ("tokenizer", tokenizer.fingerprint().to_string()),
        ("columns", format!("{columns:?}")),
        ("detokenizer", format!("{detokenizer:?}")),
        ("max_tokens", max_tokens.map_or_else(|| "none".to_owned(), |most| most.to_string())),
    ]
}
