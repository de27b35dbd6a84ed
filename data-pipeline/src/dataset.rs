//! A data set is a pure function from a row number to an example.

use std::ops::Range;

use crate::{error::Result, manifest::DatasetManifest};

/// One row, tokenised, before any token is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// Ids that are always visible and come first; empty for language modelling.
    pub prompt: Vec<u32>,
    /// Ids of the segment that tokens are dropped from.
    pub tokens: Vec<u32>,
}

/// A source of a data set that is mixed from several: a range of its groups that is ordered by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What the source is called in reports.
    pub name: String,
    /// The source's groups.
    pub groups: Range<usize>,
    /// How often samples are taken from the source, in proportion to the weights of the others.
    pub weight: f64,
}

/// A file that rows of a data set lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Its path or address.
    pub path: String,
    /// Its rows in the numbering of the data set; may be empty.
    pub rows: Range<u64>,
    /// A hash that changes when the file changes.
    pub fingerprint: u128,
    /// Whether its rows are texts (otherwise token ids).
    pub is_text: bool,
}

/// The rows of one split, numbered `0..len()`. The same row always gives the same example.
pub trait Dataset: Send + Sync {
    /// Number of rows; at least one.
    fn len(&self) -> u64;

    /// Row counts of consecutive groups of rows that are cheap to read together (row groups); their sum is `len()`.
    fn groups(&self) -> &[u64];

    /// The sources that are mixed, in the order of their groups; most data sets are one.
    fn parts(&self) -> Vec<Part> {
        vec![Part { name: "train".into(), groups: 0..self.groups().len(), weight: 1.0 }]
    }

    /// The example of a row; none if the row cannot be used and the settings say to skip such rows.
    ///
    /// # Errors
    /// When the row is out of range, damaged, null or cannot be tokenised.
    fn example(&self, row: u64) -> Result<Option<Example>>;

    /// Hands the examples of rows to `take`, in the order given, until it returns false. Rows of a group that follow each other
    /// cost one reading of the group, whatever else is read meanwhile.
    fn each_example(
        &self,
        rows: &mut dyn Iterator<Item = u64>,
        take: &mut dyn FnMut(u64, Result<Option<Example>>) -> bool,
    ) {
        rows.take_while(|&row| take(row, self.example(row))).for_each(drop);
    }

    /// Memory that a group takes while rows of it are read, as far as is known without reading it.
    fn group_bytes(&self, _group: usize) -> usize {
        0
    }

    /// Says that these rows are asked for soon, so that what is slow to fetch can be fetched meanwhile.
    fn read_ahead(&self, _rows: &[u64]) {}

    /// How many different rows have been skipped so far because they or their files are bad.
    fn skipped(&self) -> u64 {
        0
    }

    /// The files that the rows lie in, in the order of the rows; none if the rows come from elsewhere.
    fn files(&self) -> Vec<DataFile> {
        Vec::new()
    }

    /// A hash that changes when the rows or the rules that make examples of them change.
    fn fingerprint(&self) -> &str;

    /// What the fingerprint covers, for [`DatasetManifest::difference`] to name what changed.
    fn manifest(&self) -> DatasetManifest {
        DatasetManifest::of_rules([("generator", self.fingerprint().to_owned())])
    }

    /// True for no rows (which no constructor of this crate allows).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
