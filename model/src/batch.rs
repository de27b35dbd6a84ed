//! The host view of a micro-batch, checked once so that nothing behind it can index out of range.

use crate::config::ModelShape;
use crate::error::{Error, Result};

/// B rows of visible tokens, N in all, and the tokens dropped from each gap, borrowed from the caller.
///
/// Token `n` of row `b` has `row_ptr[b] <= n < row_ptr[b + 1]`. The gap right of token `n` lost the tokens
/// `tgt_ids[t]`, `tgt_counts[t]` copies each, `tgt_ptr[n] <= t < tgt_ptr[n + 1]`. Rows may come in any order; rows sorted by
/// length save a permutation.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `[B + 1]`, from 0 to N.
    pub row_ptr: &'a [i64],
    /// `[N]` token ids.
    pub tokens: &'a [i64],
    /// `[N]` position numbers, at most the model's `max_length`.
    pub positions: &'a [i64],
    /// `[B]` index of CLS within its row.
    pub cls: &'a [i64],
    /// `[N + 1]`, from 0 to T.
    pub tgt_ptr: &'a [i64],
    /// `[T]` distinct ids of a gap.
    pub tgt_ids: &'a [i64],
    /// `[T]` copies of that id, at least 1.
    pub tgt_counts: &'a [i64],
}

impl Batch<'_> {
    /// Number of rows B.
    pub fn rows(&self) -> usize {
        self.cls.len()
    }

    /// Number of visible tokens N.
    pub fn visible(&self) -> usize {
        self.tokens.len()
    }

    /// First and one-past-last token of a row.
    pub(crate) fn row(&self, row: usize) -> std::ops::Range<usize> {
        self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize
    }

    /// Target entries of the gap right of a token.
    pub(crate) fn gap(&self, token: usize) -> std::ops::Range<usize> {
        self.tgt_ptr[token] as usize..self.tgt_ptr[token + 1] as usize
    }

    /// Number of tokens dropped from a row.
    pub(crate) fn n_drops(&self, row: usize) -> i64 {
        let tokens = self.row(row);
        let entries = self.tgt_ptr[tokens.start] as usize..self.tgt_ptr[tokens.end] as usize;
        self.tgt_counts[entries].iter().sum()
    }

    /// Checks every index and id against the model.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first place that is wrong.
    pub fn validate(&self, shape: &ModelShape) -> Result<()> {
        let (rows, tokens, targets) = (self.rows(), self.visible(), self.tgt_ids.len());
        check_pointers("row_ptr", self.row_ptr, rows, tokens)?;
        check_pointers("tgt_ptr", self.tgt_ptr, tokens, targets)?;
        check_len("positions", self.positions.len(), tokens)?;
        check_len("tgt_counts", self.tgt_counts.len(), targets)?;
        check_values("tokens", self.tokens, 0, shape.num_embeddings - 1)?;
        check_values("positions", self.positions, 0, shape.positions() - 1)?;
        check_values("tgt_ids", self.tgt_ids, 0, shape.num_embeddings - 1)?;
        check_values("tgt_counts", self.tgt_counts, 1, LARGEST_COUNT)?;
        (0..rows).try_for_each(|row| self.check_row(row))
    }

    fn check_row(&self, row: usize) -> Result<()> {
        let range = self.row(row);
        let fail = |problem: String| Err(Error::Batch { place: format!("row {row}"), problem });
        if range.is_empty() {
            return fail("the row is empty; it must hold at least CLS".to_owned());
        }
        let cls = self.cls[row];
        if cls < 0 || cls as usize >= range.len() {
            return fail(format!("CLS at {cls} is outside the row's {} tokens", range.len()));
        }
        if !self.gap(range.start + cls as usize).is_empty() {
            return fail("tokens are missing right of CLS, where the model never inserts".to_owned());
        }
        Ok(())
    }
}

/// Counts beyond this lose precision as f32 weights and can only be rubbish.
const LARGEST_COUNT: i64 = 1 << 24;

fn check_len(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Batch {
        place: name.to_owned(),
        problem: format!("it has {found} entries instead of {expected}"),
    })
}

fn check_pointers(name: &str, pointers: &[i64], count: usize, end: usize) -> Result<()> {
    check_len(name, pointers.len(), count + 1)?;
    let rises = pointers.windows(2).all(|pair| pair[0] <= pair[1]);
    if rises && pointers[0] == 0 && pointers[count] == end as i64 {
        return Ok(());
    }
    Err(Error::Batch { place: name.to_owned(), problem: format!("it must rise from 0 to {end}") })
}

fn check_values(name: &str, values: &[i64], low: i64, high: i64) -> Result<()> {
    match values.iter().position(|value| !(low..=high).contains(value)) {
        None => Ok(()),
        Some(at) => Err(Error::Batch {
            place: format!("{name}[{at}]"),
            problem: format!("{} is not in {low}..={high}", values[at]),
        }),
    }
}
