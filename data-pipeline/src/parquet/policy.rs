//! What damaged data does: an error that names the place, or a warning, a count and one row less.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::index::FileIndex;
use crate::{
    WARNINGS_OF_A_SET,
    config::OnBad,
    error::{Error, Result},
};

/// Warnings of a data set; further bad places are only counted.
const MAX_WARNINGS: usize = 100;

/// What an error says is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// One row.
    Row,
    /// A file, or a row group of it.
    File,
}

/// The part of the data that is at fault; none when it cannot be reached or the settings are wrong.
fn damage(error: &Error) -> Option<Damage> {
    match error {
        Error::Null { .. } | Error::Utf8 { .. } | Error::TokenId { .. } | Error::Tokenise { .. } => {
            Some(Damage::Row)
        }
        Error::RowGroup { .. }
        | Error::BadFile { .. }
        | Error::MissingColumn { .. }
        | Error::ColumnType { .. } => Some(Damage::File),
        _ => None,
    }
}

/// The files that can be read, in their order. Bad ones are told all at once, or left out with a warning each.
///
/// # Errors
/// When a bad file is not to be skipped, cannot be reached, or none is left.
pub(super) fn usable_files(opened: Vec<Result<FileIndex>>, on_bad_file: OnBad) -> Result<Vec<FileIndex>> {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for file in opened {
        match file {
            Ok(file) => files.push(file),
            Err(error) => errors.push(error),
        }
    }
    let skips = on_bad_file == OnBad::Skip && !files.is_empty();
    if skips && errors.iter().all(|error| damage(error).is_some()) {
        for error in errors.iter().take(MAX_WARNINGS) {
            tracing::warn!(target: WARNINGS_OF_A_SET, "{error}; the file is skipped");
        }
        if errors.len() > MAX_WARNINGS {
            let more = errors.len() - MAX_WARNINGS;
            tracing::warn!(target: WARNINGS_OF_A_SET, "{more} more files are bad and skipped");
        }
        return Ok(files);
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(Error::BadFiles(errors)),
    }
}

/// The bad rows and row groups of a data set that have been met and skipped.
#[derive(Debug)]
pub(super) struct Skips {
    location: String,
    on_bad_row: OnBad,
    on_bad_file: OnBad,
    /// Rows of every group.
    counts: Vec<u64>,
    /// Rows of all groups.
    len: u64,
    /// Groups that cannot be decoded.
    damaged: Vec<AtomicBool>,
    met: Mutex<Met>,
    warnings: AtomicUsize,
}

/// Which rows were met: a bit a row, for the groups with a bad one.
#[derive(Debug, Default)]
struct Met {
    rows: HashMap<usize, Vec<u64>>,
    count: u64,
}

impl Skips {
    /// Nothing is skipped yet of groups with so many rows.
    pub fn new(location: &str, on_bad_row: OnBad, on_bad_file: OnBad, counts: &[u64]) -> Self {
        Self {
            location: location.to_owned(),
            on_bad_row,
            on_bad_file,
            counts: counts.to_vec(),
            len: counts.iter().sum(),
            damaged: counts.iter().map(|_| AtomicBool::new(false)).collect(),
            met: Mutex::default(),
            warnings: AtomicUsize::new(0),
        }
    }

    /// Whether a group is known to be damaged and to be skipped.
    pub fn is_damaged(&self, group: usize) -> bool {
        self.damaged[group].load(Ordering::Relaxed)
    }

    /// Different rows that were skipped.
    pub fn count(&self) -> u64 {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Takes note of a bad row of a group, and warns the first time.
    ///
    /// # Errors
    /// The error itself when it is not to be skipped; [`Error::AllSkipped`] when no sound row can be left.
    pub fn skip(&self, group: usize, row: usize, error: Error) -> Result<()> {
        let policy = match damage(&error) {
            Some(Damage::Row) => self.on_bad_row,
            Some(Damage::File) => self.on_bad_file,
            None => OnBad::Error,
        };
        if policy == OnBad::Error {
            return Err(error);
        }
        let (new, count) = match damage(&error) {
            Some(Damage::File) => self.note_group(group),
            _ => self.note_row(group, row),
        };
        if new {
            self.warn(&error);
        }
        if count == self.len {
            return Err(Error::AllSkipped { location: self.location.clone() });
        }
        Ok(())
    }

    /// Whether it is new, and the rows skipped now.
    fn note_group(&self, group: usize) -> (bool, u64) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !self.damaged[group].swap(true, Ordering::Relaxed);
        if new {
            let known: u32 = met.rows.remove(&group).iter().flatten().map(|bits| bits.count_ones()).sum();
            met.count += self.counts[group] - u64::from(known);
        }
        (new, met.count)
    }

    fn note_row(&self, group: usize, row: usize) -> (bool, u64) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let words = (self.counts[group] as usize).div_ceil(64);
        let bits = met.rows.entry(group).or_insert_with(|| vec![0; words]);
        let bit = 1 << (row % 64);
        let new = bits[row / 64] & bit == 0 && !self.is_damaged(group);
        bits[row / 64] |= bit;
        met.count += u64::from(new);
        (new, met.count)
    }

    fn warn(&self, error: &Error) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            earlier if earlier < MAX_WARNINGS => tracing::warn!("{error}; it is skipped"),
            MAX_WARNINGS => {
                tracing::warn!(
                    "more rows of '{}' are bad; from here on they are only counted",
                    self.location
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RowAddress;

    fn null() -> Error {
        let address = RowAddress { path: "a.parquet".into(), row_group: 0, row: 0 };
        Error::Null { column: "text".into(), address }
    }

    fn damaged() -> Error {
        let reason = "bad bytes".into();
        Error::RowGroup { path: "a.parquet".into(), row_group: 0, first_row: 0, last_row: 69, reason }
    }

    #[test]
    fn every_bad_row_counts_once() {
        let skips = Skips::new("set", OnBad::Skip, OnBad::Skip, &[70, 70]);
        for row in [0, 69, 0, 64, 69] {
            skips.skip(0, row, null()).unwrap();
        }
        assert_eq!(skips.count(), 3);
        assert!(!skips.is_damaged(0));
        for _ in 0..2 {
            skips.skip(0, 5, damaged()).unwrap();
        }
        assert!(skips.is_damaged(0) && !skips.is_damaged(1));
        assert_eq!(skips.count(), 70);
        for row in 0..69 {
            skips.skip(1, row, null()).unwrap();
        }
        assert!(matches!(skips.skip(1, 69, null()), Err(Error::AllSkipped { .. })));
    }

    #[test]
    fn rows_and_files_have_policies_of_their_own() {
        let rows = Skips::new("set", OnBad::Skip, OnBad::Error, &[10]);
        rows.skip(0, 1, null()).unwrap();
        assert!(matches!(rows.skip(0, 2, damaged()), Err(Error::RowGroup { .. })));
        let files = Skips::new("set", OnBad::Error, OnBad::Skip, &[10, 10]);
        assert!(matches!(files.skip(0, 1, null()), Err(Error::Null { .. })));
        files.skip(0, 2, damaged()).unwrap();
        assert_eq!((rows.count(), files.count()), (1, 10));
        assert!(matches!(files.skip(1, 0, Error::LoaderStopped), Err(Error::LoaderStopped)));
    }
}
