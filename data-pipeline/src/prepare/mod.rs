//! Text shards become token shards, once, so that training need not tokenise: one input file, one output file.

mod cut;
mod hold_out;
mod manifest;
mod write;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cut::Cutter;
pub use hold_out::HoldOut;
use hold_out::Selection;
pub(crate) use manifest::{Manifest, Recipe};
use write::ShardWriter;

use crate::{
    config::DataConfig,
    dataset::{DataFile, Dataset, Example},
    error::{Error, Result},
    open::Split,
    output::lock,
    progress::{Amounts, Progress, in_parallel},
};

/// What becomes of a text by its number of tokens (after `data.max_tokens`, which comes first).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthRule {
    /// It is kept whole.
    Keep,
    /// It is left out if it has more than so many tokens.
    Split(usize),
    /// It is cut into pieces of at most so many tokens, before a new word where possible.
    Cut(usize),
}

impl fmt::Display for LengthRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LengthRule::Keep => write!(f, "keep"),
            LengthRule::Split(max_tokens) => write!(f, "split at {max_tokens} tokens"),
            LengthRule::Cut(max_tokens) => write!(f, "cut to {max_tokens} tokens"),
        }
    }
}

/// How token shards are written.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The folder, created if needed.
    pub output: PathBuf,
    /// What becomes of long texts.
    pub rule: LengthRule,
    /// The rows of the training split that are the validation split instead (none: `data.validation` is).
    pub hold_out: Option<HoldOut>,
    /// Rows of a row group.
    pub row_group_rows: usize,
    /// Files that are worked on at the same time.
    pub threads: usize,
}

/// What a job has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrepareReport {
    /// Files written.
    pub files: u64,
    /// Files found complete from an earlier start; the other numbers do not count them.
    pub finished_before: u64,
    /// Rows read.
    pub rows_read: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Tokens written.
    pub tokens: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Rows left out because they cannot be used.
    pub bad_rows: u64,
    /// Rows left out because they are too long.
    pub long_rows: u64,
    /// Whether the job was asked to stop before its end; started again it goes on.
    pub stopped: bool,
}

/// Writes a split as `SPLIT-NNNNN-of-NNNNN.parquet` with the column `token_ids` (and `doc_id`, `chunk` when cutting). Rows
/// become ids as in training, with the same tokenizer, rules and policies; they keep their order. With
/// [`PrepareOptions::hold_out`] the training and the validation split are both made of the files of `data.train`.
///
/// The bytes do not depend on the number of threads. A job that was killed goes on with the files that are missing.
///
/// # Errors
/// As for [`DataConfig::open_split`]; rows that cannot be held out; a folder with shards of other settings, or that
/// another job writes to; bad rows, unless they are to be left out; what the disk refuses.
pub fn prepare(
    config: &DataConfig,
    split: Split,
    options: &PrepareOptions,
    progress: &dyn Progress,
) -> Result<PrepareReport> {
    if options.row_group_rows == 0 || options.threads == 0 {
        return Err(Error::Setting("rows of a row group and threads must be at least 1".into()));
    }
    if let LengthRule::Split(0) | LengthRule::Cut(0) = options.rule {
        return Err(Error::Setting(format!(
            "rule '{}' leaves no token; the block is too small",
            options.rule
        )));
    }
    let hold_out = options.hold_out.filter(|_| split != Split::Test);
    let (source, made) = match hold_out {
        Some(hold_out) => {
            hold_out.check(config)?;
            // Both are entered before one is written: rows held out may lie beside no training split that has them.
            (Split::Train, vec![Split::Train.name(), Split::Validation.name()])
        }
        None => (split, vec![split.name()]),
    };
    let tokenizer = Arc::new(config.open_tokenizer()?);
    let dataset = config.open_split(source, &tokenizer, 0)?;
    let files = source_files(dataset.as_ref(), source)?;
    let job = Job {
        cutter: match options.rule {
            LengthRule::Cut(max_tokens) => Some(Cutter::new(&tokenizer, max_tokens)?),
            _ => None,
        },
        tokenizer: tokenizer.fingerprint(),
        dataset: dataset.as_ref(),
        selection: Selection::new(hold_out, split, dataset.len())?,
        options,
        progress,
    };
    let _lock = lock(&options.output)?;
    Manifest::enter(&options.output, &made, &recipe(config, &job.tokenizer, options, hold_out, &files))?;
    progress.begin(split.name(), job.selection.len);
    let shard =
        |index| options.output.join(format!("{}-{index:05}-of-{:05}.parquet", split.name(), files.len()));
    let reports =
        in_parallel(files.len(), options.threads, progress, PrepareReport::default, |report, index| {
            job.file(&files[index], &shard(index), report)
        })?;
    let mut total = reports.into_iter().fold(PrepareReport::default(), PrepareReport::plus);
    total.stopped = total.files + total.finished_before < files.len() as u64;
    Ok(total)
}

/// The files of a data set that consists of files.
pub(crate) fn source_files(dataset: &dyn Dataset, split: Split) -> Result<Vec<DataFile>> {
    let files = dataset.files();
    if files.is_empty() {
        return Err(Error::Setting(format!("data.{} names no files that could be prepared", split.name())));
    }
    Ok(files)
}

fn recipe(
    config: &DataConfig,
    tokenizer: &str,
    options: &PrepareOptions,
    hold_out: Option<HoldOut>,
    files: &[DataFile],
) -> Recipe {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let settings = [
        ("tokenizer", tokenizer.to_owned()),
        ("rule", options.rule.to_string()),
        ("data.max_tokens", config.max_tokens.map_or("none".into(), |tokens| tokens.to_string())),
        ("data.detokenizer", format!("{:?}", config.detokenizer).to_lowercase()),
        ("row-group-rows", options.row_group_rows.to_string()),
    ];
    let held_out = hold_out.map(|hold_out| ("hold-out", hold_out.to_string()));
    Recipe {
        settings: settings.into_iter().chain(held_out).map(|(key, value)| (key.to_owned(), value)).collect(),
        inputs: files.iter().map(|file| (name(&file.path), format!("{:032x}", file.fingerprint))).collect(),
    }
}

struct Job<'a> {
    cutter: Option<Cutter>,
    /// Its fingerprint.
    tokenizer: String,
    dataset: &'a dyn Dataset,
    selection: Selection,
    options: &'a PrepareOptions,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    /// Rows between two words to the progress.
    const STRIDE: u64 = 256;

    /// Writes the shard of one input file unless it is there. Nothing is left under its name when the job is to stop.
    fn file(&self, file: &DataFile, shard: &Path, report: &mut PrepareReport) -> Result<()> {
        let mut rows = self.selection.of(file.rows.clone());
        if shard.is_file() {
            let rows = rows.count() as u64;
            report.finished_before += 1;
            self.progress.advance(Amounts { files: 1, rows, ..Amounts::default() });
            return Ok(());
        }
        let has_pieces = self.cutter.is_some();
        let mut writer =
            ShardWriter::create(shard, self.options.row_group_rows, has_pieces, self.tokenizer.clone())?;
        let mut done = PrepareReport::default();
        let (mut told, mut result) = (done, Ok(true));
        self.dataset.each_example(&mut rows, &mut |row, example| {
            result = example.and_then(|example| self.row(row, example, &mut writer, &mut done));
            if matches!(result, Ok(true)) {
                result = Ok(!self.progress.should_stop());
                if done.rows_read % Self::STRIDE == 0 {
                    self.tell(&mut told, &done);
                }
            }
            matches!(result, Ok(true))
        });
        if !result? {
            return Ok(());
        }
        done.bytes = writer.finish()?;
        done.files = 1;
        self.tell(&mut told, &done);
        *report = report.plus(done);
        Ok(())
    }

    /// Writes a row; true if all is well.
    fn row(
        &self,
        row: u64,
        example: Option<Example>,
        writer: &mut ShardWriter,
        done: &mut PrepareReport,
    ) -> Result<bool> {
        done.rows_read += 1;
        let Some(example) = example else {
            done.bad_rows += 1;
            return Ok(true);
        };
        let ids = &example.tokens;
        let pieces = match (&self.cutter, self.options.rule) {
            (Some(cutter), _) => cutter.pieces(ids),
            (None, LengthRule::Split(max_tokens)) if ids.len() > max_tokens => {
                done.long_rows += 1;
                return Ok(true);
            }
            _ => vec![&ids[..]],
        };
        for (chunk, piece) in pieces.into_iter().enumerate() {
            writer.push(piece, row, chunk)?;
            done.rows_written += 1;
            done.tokens += piece.len() as u64;
        }
        Ok(true)
    }

    /// Tells what has been done since it was last told.
    fn tell(&self, told: &mut PrepareReport, done: &PrepareReport) {
        self.progress.advance(Amounts {
            files: done.files - told.files,
            rows: done.rows_read - told.rows_read,
            tokens: done.tokens - told.tokens,
            bytes: done.bytes - told.bytes,
        });
        *told = *done;
    }
}

impl PrepareReport {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            files: self.files + other.files,
            finished_before: self.finished_before + other.finished_before,
            rows_read: self.rows_read + other.rows_read,
            rows_written: self.rows_written + other.rows_written,
            tokens: self.tokens + other.tokens,
            bytes: self.bytes + other.bytes,
            bad_rows: self.bad_rows + other.bad_rows,
            long_rows: self.long_rows + other.long_rows,
            stopped: self.stopped || other.stopped,
        }
    }
}
