//! Everything that can go wrong with data, as one sentence each: what, where, and what to do.

use std::{fmt, path::PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Where a row lies: row group and row of a file, both counted from 0 (the row over the whole file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowAddress {
    /// The Parquet file.
    pub path: PathBuf,
    /// Its row group.
    pub row_group: usize,
    /// The row within the file.
    pub row: u64,
}

impl fmt::Display for RowAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} (row group {}) of '{}'", self.row, self.row_group, self.path.display())
    }
}

/// An error of the data pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of section `data`, or an argument derived from it, makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The batch arithmetic does not work out.
    #[error("{0}")]
    Plan(String),
    /// A location names nothing.
    #[error("'{location}' matches no Parquet file; give a file, a directory with *.parquet files or a glob")]
    NoFiles {
        /// The location as configured.
        location: String,
    },
    /// A location is not a valid glob.
    #[error("'{location}' is not a valid file pattern: {reason}")]
    BadPattern {
        /// The location as configured.
        location: String,
        /// What the pattern parser says.
        reason: String,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {action} '{path}': {source}", path = path.display())]
    Io {
        /// What was tried: "open", "read", "create", ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A store does not answer as it should.
    #[error("cannot {what}: {reason} (tries: {tries})")]
    Remote {
        /// What was tried: "read bytes A..B of 'URL'", ...
        what: String,
        /// How often.
        tries: usize,
        /// Why the last try failed.
        reason: String,
    },
    /// An object is another one than when its set was opened.
    #[error("'{url}' has changed since the data set was opened; start again to read the new file")]
    Changed {
        /// The object.
        url: String,
    },
    /// A file is no (sound) Parquet file.
    #[error("'{path}' is not a readable Parquet file: {reason}; replace it or take it out of the set", path = path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its footer.
        reason: String,
    },
    /// Several files of a set are bad; one sentence each.
    #[error("{}", sentences(.0))]
    BadFiles(Vec<Error>),
    /// No column has a name that is looked for.
    #[error("'{path}' has no column {wanted}; its columns are {found}", path = path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// Quoted names that would do.
        wanted: String,
        /// Quoted names that exist.
        found: String,
    },
    /// A column exists but holds something else.
    #[error("column '{column}' of '{path}' holds {found}, but {wanted} is needed", path = path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A set without rows.
    #[error("'{location}' has no rows; a split needs at least one")]
    NoRows {
        /// The location as configured.
        location: String,
    },
    /// No row is left once the bad ones are skipped.
    #[error("every row of '{location}' is bad and skipped; a split needs at least one sound row")]
    AllSkipped {
        /// The location as configured.
        location: String,
    },
    /// A row group cannot be decoded.
    #[error("row group {row_group} (rows {first_row}..={last_row}) of '{path}' is damaged: {reason}; replace the file", path = path.display())]
    RowGroup {
        /// The file.
        path: PathBuf,
        /// The row group.
        row_group: usize,
        /// Its first row in the file.
        first_row: u64,
        /// Its last row in the file.
        last_row: u64,
        /// What the decoder says.
        reason: String,
    },
    /// A row is null or has a null element.
    #[error("column '{column}' is null at {address}; remove the row or fill it")]
    Null {
        /// The column.
        column: String,
        /// The row.
        address: RowAddress,
    },
    /// A text is not UTF-8.
    #[error(
        "column '{column}' is not valid UTF-8 from byte {byte} on at {address}; remove or repair the row"
    )]
    Utf8 {
        /// The column.
        column: String,
        /// The first bad byte of the row's text.
        byte: usize,
        /// The row.
        address: RowAddress,
    },
    /// A token id is outside the vocabulary.
    #[error(
        "column '{column}' has token id {id} outside the vocabulary of {vocab_size} ids at {address}; was the set made with another tokenizer?"
    )]
    TokenId {
        /// The column.
        column: String,
        /// The id.
        id: i128,
        /// Size of the vocabulary.
        vocab_size: usize,
        /// The row.
        address: RowAddress,
    },
    /// A file of token ids says that they are another tokenizer's.
    #[error(
        "the token ids of '{path}' were made with another tokenizer (fingerprint {theirs}, data.tokenizer has {ours}); set \
         data.tokenizer and data.special_tokens to what they were made with, or prepare the texts again",
        path = path.display()
    )]
    OtherTokenizer {
        /// The file.
        path: PathBuf,
        /// The fingerprint in the file.
        theirs: String,
        /// The fingerprint of the tokenizer in use.
        ours: String,
    },
    /// A row cannot be tokenised.
    #[error("cannot tokenise {address}: {reason}")]
    Tokenise {
        /// The row.
        address: RowAddress,
        /// What the tokenizer says.
        reason: String,
    },
    /// A text cannot be encoded.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// A row number is outside the data set.
    #[error("row {row} is asked of a data set of {len} rows; the data position belongs to another data set")]
    RowOutOfRange {
        /// The row.
        row: u64,
        /// Rows of the data set.
        len: u64,
    },
    /// A tokenizer file cannot be used.
    #[error("'{path}' is not a usable tokenizer file: {reason}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A Parquet file cannot be written.
    #[error("cannot write '{path}': {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        reason: String,
    },
    /// No memory for a batch.
    #[error(
        "no host memory for a batch of {words} words of 8 bytes: {reason}; lower per_device_batch_size or block_size"
    )]
    HostMemory {
        /// What was asked for.
        words: usize,
        /// What the allocator says.
        reason: String,
    },
    /// The system gives no thread.
    #[error("cannot start a data thread: {0}; lower data.threads or raise the limit of processes")]
    Thread(std::io::Error),
    /// The loader delivers nothing any more.
    #[error("the data loader has stopped after an earlier error; start it again from the last data position")]
    LoaderStopped,
}

impl Error {
    /// True when settings are to be changed (a wrong path, size or plan), false when the data or the machine is at fault.
    pub fn is_config(&self) -> bool {
        match self {
            Error::Setting(_) | Error::Plan(_) | Error::NoFiles { .. } | Error::BadPattern { .. } => true,
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Error::Tokenizer { .. } | Error::OtherTokenizer { .. } => true,
            _ => false,
        }
    }
}

/// The first sentences, one a line; a set of thousands of bad files stays readable.
fn sentences(errors: &[Error]) -> String {
    const SHOWN: usize = 10;
    let mut lines: Vec<String> = errors.iter().take(SHOWN).map(Error::to_string).collect();
    if errors.len() > SHOWN {
        lines.push(format!("{} more files of this set are bad.", errors.len() - SHOWN));
    }
    lines.join("\n")
}
