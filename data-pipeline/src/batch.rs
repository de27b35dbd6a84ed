//! A batch as compressed rows in one slab of words: what a gap lost is a short list, and no padding exists.

use std::{fmt, ops::Range};

use crate::{
    dense::{PadSide, dense},
    drop::SampleKey,
    error::{Error, Result},
    pool::Slab,
};

/// A micro-batch for training.
///
/// Rows are sorted by their number of visible tokens (equal ones in the order of their slots). B rows, N visible
/// tokens and T target entries in all. All arrays are ranges of one slab of 64-bit words, so a copy of
/// [`words`](Self::words) to a device carries everything, and [`layout`](Self::layout) tells what lies where. The slab
/// goes back to its pool when the batch is dropped: a copy that runs by itself must end before.
pub struct PackedBatch {
    samples: Vec<SampleKey>,
    layout: BatchLayout,
    slab: Slab,
}

/// Where the arrays of a batch lie in its words, end to end in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchLayout {
    /// B, the number of rows.
    pub rows: usize,
    /// N, the number of visible tokens.
    pub visible: usize,
    /// T, the number of target entries.
    pub targets: usize,
}

impl BatchLayout {
    /// Of `row_ptr[B+1]`: row b has the visible tokens `row_ptr[b]..row_ptr[b+1]`.
    pub fn row_ptr(&self) -> Range<usize> {
        0..self.rows + 1
    }

    /// Of `cls[B]`: index of CLS within its row.
    pub fn cls(&self) -> Range<usize> {
        behind(self.row_ptr(), self.rows)
    }

    /// Of `tokens[N]`: ids of the visible tokens.
    pub fn tokens(&self) -> Range<usize> {
        behind(self.cls(), self.visible)
    }

    /// Of `positions[N]`: position within the row, from 0.
    pub fn positions(&self) -> Range<usize> {
        behind(self.tokens(), self.visible)
    }

    /// Of `token_types[N]`: 0 for CLS, 1 for the prompt, 2 for BOS and all after it.
    pub fn token_types(&self) -> Range<usize> {
        behind(self.positions(), self.visible)
    }

    /// Of `tgt_ptr[N+1]`: the gap directly right of visible token n has the target entries `tgt_ptr[n]..tgt_ptr[n+1]`.
    pub fn tgt_ptr(&self) -> Range<usize> {
        behind(self.token_types(), self.visible + 1)
    }

    /// Of `tgt_ids[T]`: ids dropped in a gap, distinct and ascending.
    pub fn tgt_ids(&self) -> Range<usize> {
        behind(self.tgt_ptr(), self.targets)
    }

    /// Of `tgt_counts[T]`: how often the id was dropped in the gap.
    pub fn tgt_counts(&self) -> Range<usize> {
        behind(self.tgt_ids(), self.targets)
    }

    /// Words in all.
    pub fn words(&self) -> usize {
        self.tgt_counts().end
    }

    /// The arrays of a slab that is being filled.
    pub(crate) fn split<'a>(&self, words: &'a mut [i64]) -> BatchArrays<&'a mut [i64]> {
        let (row_ptr, words) = words.split_at_mut(self.rows + 1);
        let (cls, words) = words.split_at_mut(self.rows);
        let (tokens, words) = words.split_at_mut(self.visible);
        let (positions, words) = words.split_at_mut(self.visible);
        let (token_types, words) = words.split_at_mut(self.visible);
        let (tgt_ptr, words) = words.split_at_mut(self.visible + 1);
        let (tgt_ids, words) = words.split_at_mut(self.targets);
        let tgt_counts = &mut words[..self.targets];
        BatchArrays { row_ptr, cls, tokens, positions, token_types, tgt_ptr, tgt_ids, tgt_counts }
    }
}

fn behind(before: Range<usize>, len: usize) -> Range<usize> {
    before.end..before.end + len
}

/// The arrays of a batch; see [`BatchLayout`] for what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "BatchLayout says it")]
pub struct BatchArrays<S> {
    pub row_ptr: S,
    pub cls: S,
    pub tokens: S,
    pub positions: S,
    pub token_types: S,
    pub tgt_ptr: S,
    pub tgt_ids: S,
    pub tgt_counts: S,
}

impl PackedBatch {
    /// A batch of arrays that were made elsewhere.
    ///
    /// # Errors
    /// [`Error::Setting`] when the lengths contradict each other.
    pub fn from_arrays(samples: Vec<SampleKey>, arrays: BatchArrays<&[i64]>) -> Result<Self> {
        let layout =
            BatchLayout { rows: samples.len(), visible: arrays.tokens.len(), targets: arrays.tgt_ids.len() };
        let BatchArrays { row_ptr, cls, tokens, positions, token_types, tgt_ptr, tgt_ids, tgt_counts } =
            arrays;
        let given = [row_ptr, cls, tokens, positions, token_types, tgt_ptr, tgt_ids, tgt_counts];
        let BatchLayout { rows, visible, targets } = layout;
        let wanted = [rows + 1, rows, visible, visible, visible, visible + 1, targets, targets];
        let in_range = |ptr: &[i64], len: usize| {
            ptr.is_sorted() && ptr.first() == Some(&0) && ptr.last() == Some(&(len as i64))
        };
        if given.map(<[i64]>::len) != wanted || !in_range(row_ptr, visible) || !in_range(tgt_ptr, targets) {
            return Err(Error::Setting(format!(
                "arrays of {:?} entries make no batch of {rows} rows, {visible} visible tokens and {targets} targets",
                given.map(<[i64]>::len)
            )));
        }
        Ok(Self::new(samples, layout, Slab::plain(given.concat())))
    }

    /// `slab` has at least the words of `layout`, which are filled.
    pub(crate) fn new(samples: Vec<SampleKey>, layout: BatchLayout, slab: Slab) -> Self {
        Self { samples, layout, slab }
    }

    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// N, the number of visible tokens.
    pub fn visible(&self) -> usize {
        self.layout.visible
    }

    /// `[B]` which sample a row is, and where it stands in the run.
    pub fn samples(&self) -> &[SampleKey] {
        &self.samples
    }

    /// `[B]` row of the data set.
    pub fn sample_ids(&self) -> impl ExactSizeIterator<Item = u64> {
        self.samples.iter().map(|sample| sample.row)
    }

    /// All arrays in one piece, [`layout`](Self::layout) apart.
    pub fn words(&self) -> &[i64] {
        &self.slab.words()[..self.layout.words()]
    }

    /// Where the arrays lie in [`words`](Self::words).
    pub fn layout(&self) -> &BatchLayout {
        &self.layout
    }

    /// `[B+1]` see [`BatchLayout::row_ptr`].
    pub fn row_ptr(&self) -> &[i64] {
        &self.words()[self.layout.row_ptr()]
    }

    /// `[B]` see [`BatchLayout::cls`].
    pub fn cls(&self) -> &[i64] {
        &self.words()[self.layout.cls()]
    }

    /// `[N]` see [`BatchLayout::tokens`].
    pub fn tokens(&self) -> &[i64] {
        &self.words()[self.layout.tokens()]
    }

    /// `[N]` see [`BatchLayout::positions`].
    pub fn positions(&self) -> &[i64] {
        &self.words()[self.layout.positions()]
    }

    /// `[N]` see [`BatchLayout::token_types`].
    pub fn token_types(&self) -> &[i64] {
        &self.words()[self.layout.token_types()]
    }

    /// `[N+1]` see [`BatchLayout::tgt_ptr`].
    pub fn tgt_ptr(&self) -> &[i64] {
        &self.words()[self.layout.tgt_ptr()]
    }

    /// `[T]` see [`BatchLayout::tgt_ids`].
    pub fn tgt_ids(&self) -> &[i64] {
        &self.words()[self.layout.tgt_ids()]
    }

    /// `[T]` see [`BatchLayout::tgt_counts`].
    pub fn tgt_counts(&self) -> &[i64] {
        &self.words()[self.layout.tgt_counts()]
    }

    /// The visible tokens of a row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> Range<usize> {
        self.row_ptr()[row] as usize..self.row_ptr()[row + 1] as usize
    }

    /// The target entries of the gap right of a visible token.
    ///
    /// # Panics
    /// If `token` is not below [`visible`](Self::visible).
    pub fn gap(&self, token: usize) -> Range<usize> {
        self.tgt_ptr()[token] as usize..self.tgt_ptr()[token + 1] as usize
    }

    /// Tokens dropped from a row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn n_drops(&self, row: usize) -> i64 {
        let tokens = self.row(row);
        let entries = self.tgt_ptr()[tokens.start] as usize..self.tgt_ptr()[tokens.end] as usize;
        self.tgt_counts()[entries].iter().sum()
    }

    /// The visible ids as a `[B, width]` table, to print or compare; see [`crate::pad_truncate`].
    pub fn dense_tokens(&self, width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
        dense(self.row_ptr(), self.tokens(), width, pad, side)
    }
}

impl Default for PackedBatch {
    /// No rows.
    fn default() -> Self {
        let layout = BatchLayout::default();
        Self::new(Vec::new(), layout, Slab::plain(vec![0; layout.words()]))
    }
}

impl Clone for PackedBatch {
    /// A copy in ordinary memory.
    fn clone(&self) -> Self {
        Self::new(self.samples.clone(), self.layout, Slab::plain(self.words().to_vec()))
    }
}

impl PartialEq for PackedBatch {
    fn eq(&self, other: &Self) -> bool {
        self.samples == other.samples && self.layout == other.layout && self.words() == other.words()
    }
}

impl Eq for PackedBatch {}

impl fmt::Debug for PackedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedBatch")
            .field("samples", &self.samples)
            .field("row_ptr", &self.row_ptr())
            .field("tokens", &self.tokens())
            .field("token_types", &self.token_types())
            .field("tgt_ptr", &self.tgt_ptr())
            .field("tgt_ids", &self.tgt_ids())
            .field("tgt_counts", &self.tgt_counts())
            .finish_non_exhaustive()
    }
}
