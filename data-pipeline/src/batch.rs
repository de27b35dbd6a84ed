//! Batches as compressed rows: what a gap lost is a short list, and no padding exists.

/// Host buffers that are used again.
#[derive(Debug, Default)]
pub struct BatchPool;

/// A micro-batch for training.
///
/// Rows are sorted by their number of visible tokens (equal ones in the order of their slots). B rows, N visible
/// tokens and T target entries in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// `[B]` row of the data set.
    pub sample_ids: Vec<u64>,
    /// `[B+1]` row b has the visible tokens `row_ptr[b]..row_ptr[b+1]`.
    pub row_ptr: Vec<i64>,
    /// `[N]` ids of the visible tokens.
    pub tokens: Vec<i64>,
    /// `[N]` position within the row, from 0.
    pub positions: Vec<i64>,
    /// `[N]` 0 for CLS, 1 for the prompt, 2 for BOS and all after it.
    pub token_types: Vec<i64>,
    /// `[B]` index of CLS within its row.
    pub cls: Vec<i64>,
    /// `[N+1]` the gap directly right of visible token n has the target entries `tgt_ptr[n]..tgt_ptr[n+1]`.
    pub tgt_ptr: Vec<i64>,
    /// `[T]` ids dropped in a gap: distinct, ascending.
    pub tgt_ids: Vec<i64>,
    /// `[T]` how often the id was dropped in the gap.
    pub tgt_counts: Vec<i64>,
}

impl PackedBatch {
    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.sample_ids.len()
    }

    /// N, the number of visible tokens.
    pub fn visible(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens dropped from a row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn n_drops(&self, row: usize) -> i64 {
        let gap = |index: usize| self.tgt_ptr[self.row_ptr[index] as usize] as usize;
        self.tgt_counts[gap(row)..gap(row + 1)].iter().sum()
    }

    /// The visible ids as a `[B, width]` table, to print or compare; see [`pad_truncate`].
    pub fn dense_tokens(&self, width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
        dense(&self.row_ptr, &self.tokens, width, pad, side)
    }
}

/// A batch for prediction: packed prompts and what should come out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptBatch {
    /// `[B]` row of the data set.
    pub sample_ids: Vec<u64>,
    /// `[B+1]` row b has the tokens `row_ptr[b]..row_ptr[b+1]`.
    pub row_ptr: Vec<i64>,
    /// `[N]` CLS, the prompt and BOS of every row.
    pub tokens: Vec<i64>,
    /// `[N]` 0 for CLS, 1 for the prompt, 2 for BOS.
    pub token_types: Vec<i64>,
    /// `[B]` the ids that should be inserted, none dropped.
    pub targets: Vec<Vec<i64>>,
}

impl PromptBatch {
    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.sample_ids.len()
    }

    /// The ids as a `[B, width]` table, to print or compare; see [`pad_truncate`].
    pub fn dense_tokens(&self, width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
        dense(&self.row_ptr, &self.tokens, width, pad, side)
    }
}

/// Where a dense row is padded or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadSide {
    /// Pads in front; keeps the end of what is too long.
    Left,
    /// Pads behind; keeps the start of what is too long.
    Right,
}

/// `ids` with pads added, or ids cut, to exactly `width`.
pub fn pad_truncate(ids: &[i64], width: usize, pad: i64, side: PadSide) -> Vec<i64> {
    let pads = std::iter::repeat_n(pad, width.saturating_sub(ids.len()));
    match side {
        PadSide::Left => pads.chain(ids[ids.len().saturating_sub(width)..].iter().copied()).collect(),
        PadSide::Right => ids.iter().copied().take(width).chain(pads).collect(),
    }
}

fn dense(row_ptr: &[i64], tokens: &[i64], width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
    row_ptr
        .windows(2)
        .map(|row| pad_truncate(&tokens[row[0] as usize..row[1] as usize], width, pad, side))
        .collect()
}
