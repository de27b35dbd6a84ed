//! Seeded damage to sound Parquet files, and what may come of reading them: rows or a sentence, in bounded memory.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, ListArray, RecordBatch, StringArray},
    datatypes::{Field, Int32Type, Schema},
};
use data_pipeline::{
    Columns, Dataset, Detokenizer, Error, OnBad, ParquetDataset, ParquetOptions, Purpose, Tokenizer,
    keyed_rng, panic_becomes_error, uniform_below,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding},
    file::properties::{WriterProperties, WriterVersion},
};

use super::memory::peak_of;

/// Memory that reading a damaged file of a few kilobytes may take: a page is believed to hold 64 MiB, twice while its
/// values are copied, and the footer's lists have room for what fits its bytes.
const MAX_BYTES: usize = 512 << 20;
/// Rows in a file of the corpus.
const ROWS: i32 = 300;

/// What came of damaged files so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub runs: u64,
    /// Files that were refused when opened.
    pub refused: u64,
    /// Files with a row that was refused.
    pub bad_rows: u64,
    /// Files that were read as if nothing had happened.
    pub sound: u64,
    /// Most memory taken, in bytes.
    pub peak: usize,
}

/// Damages one file of a corpus after the other.
pub struct Fuzzer {
    corpus: Vec<Vec<u8>>,
    tokenizer: Arc<Tokenizer>,
    path: PathBuf,
    seed: u64,
    pub tally: Tally,
}

impl Fuzzer {
    /// Damaged files are written to `dir`, where the last one stays. `files` join the corpus.
    pub fn new(dir: &Path, seed: u64, files: &[PathBuf]) -> Self {
        std::panic::set_hook(Box::new(|panic| {
            if !panic_becomes_error() {
                eprintln!("{panic}");
            }
        }));
        let path = dir.join("damaged.parquet");
        let mut corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        corpus.extend(written(&path));
        Self { corpus, tokenizer: Arc::new(Tokenizer::numbers(60_000)), path, seed, tally: Tally::default() }
    }

    /// Damages a file and reads it.
    ///
    /// # Errors
    /// What went wrong with the reader, not with the file.
    pub fn step(&mut self) -> Result<(), String> {
        let mut rng = keyed_rng(self.seed, Purpose::Drop, 0, self.tally.runs);
        let mut below = |n: usize| uniform_below(&mut rng, n.max(1) as u64) as usize;
        let bytes = damaged(&self.corpus, &mut below);
        let case = format!("case {} of seed {}", self.tally.runs, self.seed);
        std::fs::write(&self.path, &bytes).map_err(|error| error.to_string())?;
        self.tally.runs += 1;
        let (outcome, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| self.read())));
        self.tally.peak = self.tally.peak.max(peak);
        if peak > MAX_BYTES {
            return Err(format!("{case} took {} MiB", peak >> 20));
        }
        match outcome {
            Err(_) => return Err(format!("{case} panicked")),
            Ok(Err(complaint)) => return Err(format!("{case}: {complaint}")),
            Ok(Ok(Read::Refused)) => self.tally.refused += 1,
            Ok(Ok(Read::BadRows)) => self.tally.bad_rows += 1,
            Ok(Ok(Read::Sound)) => self.tally.sound += 1,
        }
        Ok(())
    }

    fn read(&self) -> Result<Read, String> {
        let dataset = match open(&self.path, &self.tokenizer) {
            Ok(dataset) => dataset,
            Err(error) => return sentence(&error).map(|()| Read::Refused),
        };
        // A row of every group (a file may claim thousands of empty ones), and some more.
        let mut outcome = Read::Sound;
        let (mut start, mut rows) = (0, Vec::new());
        for &count in dataset.groups().iter().take(20) {
            rows.extend((start..start + count).step_by((count / 20).max(1) as usize).take(21));
            start += count;
        }
        for row in rows {
            if let Err(error) = dataset.example(row) {
                sentence(&error)?;
                outcome = Read::BadRows;
            }
        }
        Ok(outcome)
    }
}

enum Read {
    Refused,
    BadRows,
    Sound,
}

fn open(path: &Path, tokenizer: &Arc<Tokenizer>) -> Result<ParquetDataset, Error> {
    let options = ParquetOptions {
        columns: Columns::Language,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        on_bad_row: OnBad::Error,
        on_bad_file: OnBad::Error,
    };
    ParquetDataset::open(&path.to_string_lossy(), tokenizer, options)
}

/// Errors are one line that names the file.
fn sentence(error: &Error) -> Result<(), String> {
    let text = error.to_string();
    let names = text.contains("damaged.parquet") && !text.contains('\n') && text.len() < 2000;
    if names { Ok(()) } else { Err(format!("an error is no clear sentence: {text}")) }
}

/// A file of the corpus with one to three kinds of damage.
fn damaged(corpus: &[Vec<u8>], below: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = corpus[below(corpus.len())].clone();
    for _ in 0..1 + below(3) {
        let at = place(&bytes, below);
        let rest = &mut bytes[at..];
        match below(8) {
            0 => rest[0] ^= 1 << below(8),
            1 => rest[0] = below(256) as u8,
            // The largest numbers that a variable-length integer of 32 or 64 bits holds, and powers of two.
            2 => overwrite(rest, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            3 => overwrite(rest, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            4 => overwrite(rest, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x40][below(5)..]),
            5 => overwrite(rest, &vec![if below(2) == 0 { 0 } else { 0xff }; 1 + below(16)]),
            6 => {
                // Bytes of another place or file.
                let donor = &corpus[below(corpus.len())];
                let from = place(donor, below);
                overwrite(rest, &donor[from..(from + 1 + below(40)).min(donor.len())]);
            }
            _ => {
                // Bytes are lost or doubled; in the footer its length stays right.
                let footer = at >= bytes.len() - footer_length(&bytes);
                let length = (1 + below(8)).min(bytes.len() - at);
                let change = if below(2) == 0 {
                    bytes.drain(at..at + length);
                    -(length as i64)
                } else {
                    let again = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, again);
                    length as i64
                };
                if footer && bytes.len() > 8 && change != 0 {
                    let end = bytes.len();
                    let field: [u8; 4] = bytes[end - 8..end - 4].try_into().unwrap();
                    let length = (i64::from(u32::from_le_bytes(field)) + change) as u32;
                    bytes[end - 8..end - 4].copy_from_slice(&length.to_le_bytes());
                }
            }
        }
        if bytes.len() < 12 {
            return bytes;
        }
    }
    if below(30) == 0 {
        bytes.truncate(below(bytes.len()));
    }
    bytes
}

/// Where damage does most: footers and the starts of pages are small but steer the reader.
fn place(bytes: &[u8], below: &mut impl FnMut(usize) -> usize) -> usize {
    let footer = footer_length(bytes).clamp(8, bytes.len());
    match below(8) {
        0..=2 => bytes.len() - footer + below(footer),
        3..=5 => (4 + below(120)).min(bytes.len() - 1),
        _ => below(bytes.len()),
    }
}

fn footer_length(bytes: &[u8]) -> usize {
    let Some(field) = bytes.len().checked_sub(8).and_then(|at| bytes[at..].first_chunk::<4>()) else {
        return 0;
    };
    (u32::from_le_bytes(*field) as usize).saturating_add(8).min(bytes.len())
}

fn overwrite(target: &mut [u8], source: &[u8]) {
    let length = target.len().min(source.len());
    target[..length].copy_from_slice(&source[..length]);
}

/// Small files in every encoding, with and without compression, in both versions of pages.
fn written(path: &Path) -> Vec<Vec<u8>> {
    let texts: ArrayRef = Arc::new(StringArray::from_iter((0..ROWS).map(|row| {
        (row % 50 != 7)
            .then(|| (0..row % 9).map(|word| format!("{} ", (row * 7 + word) % 40)).collect::<String>())
    })));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..ROWS).map(|row| (row % 50 != 7).then(|| (0..row % 9).map(move |id| Some((row * 7 + id) % 40)))),
    ));
    let mut files = Vec::new();
    for (name, column, encodings) in [
        ("text", &texts, [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY]),
        ("token_ids", &lists, [Encoding::PLAIN, Encoding::DELTA_BINARY_PACKED, Encoding::BYTE_STREAM_SPLIT]),
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW] {
                let properties = WriterProperties::builder()
                    .set_writer_version(version)
                    .set_compression(compression)
                    .set_max_row_group_row_count(Some(130));
                let plain = properties.clone().set_dictionary_enabled(false);
                let kinds = encodings.map(|encoding| plain.clone().set_encoding(encoding).build());
                for properties in [properties.build()].into_iter().chain(kinds) {
                    write(path, name, column, properties);
                    files.push(std::fs::read(path).unwrap());
                }
            }
        }
    }
    files
}

fn write(path: &Path, name: &str, column: &ArrayRef, properties: WriterProperties) {
    let schema = Arc::new(Schema::new(vec![Field::new(name, column.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![column.clone()]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}
