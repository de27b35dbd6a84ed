//! Batches for prediction: what is given, the gaps that may be filled, and what should come out.

use std::ops::Range;

use crate::{
    collate::{Collator, last, prompt_ids},
    dataset::Example,
    dense::{PadSide, dense},
    drop::SampleKey,
};

/// Packed prompts and what should be inserted. B rows, N tokens, T target ids in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptBatch {
    /// `[B]` row of the data set.
    pub sample_ids: Vec<u64>,
    /// `[B+1]` row b has the tokens `row_ptr[b]..row_ptr[b+1]`.
    pub row_ptr: Vec<i64>,
    /// `[N]` CLS, BOS and the ids that are given.
    pub tokens: Vec<i64>,
    /// `[N]` 0 for CLS, 1 for ids that are given, 2 for BOS.
    pub token_types: Vec<i64>,
    /// `[N]` whether nothing may be inserted directly right of a token.
    pub closed: Vec<bool>,
    /// `[N+1]` the gap right of token n should receive `targets[tgt_ptr[n]..tgt_ptr[n+1]]`.
    pub tgt_ptr: Vec<i64>,
    /// `[T]` the ids that should be inserted, in the order of the text, none dropped.
    pub targets: Vec<i64>,
}

impl Default for PromptBatch {
    /// No rows.
    fn default() -> Self {
        Self {
            sample_ids: Vec::new(),
            row_ptr: vec![0],
            tokens: Vec::new(),
            token_types: Vec::new(),
            closed: Vec::new(),
            tgt_ptr: vec![0],
            targets: Vec::new(),
        }
    }
}

impl PromptBatch {
    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.sample_ids.len()
    }

    /// The tokens of a row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> Range<usize> {
        self.row_ptr[row] as usize..self.row_ptr[row + 1] as usize
    }

    /// All ids that should be inserted into a row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn target(&self, row: usize) -> &[i64] {
        let tokens = self.row(row);
        &self.targets[self.tgt_ptr[tokens.start] as usize..self.tgt_ptr[tokens.end] as usize]
    }

    /// The ids as a `[B, width]` table, to print or compare; see [`crate::pad_truncate`].
    pub fn dense_tokens(&self, width: usize, pad: i64, side: PadSide) -> Vec<Vec<i64>> {
        dense(&self.row_ptr, &self.tokens, width, pad, side)
    }

    /// A token whose gap is closed until a target or [`open`](Self::open) says otherwise.
    fn push(&mut self, (id, token_type): (i64, i64)) {
        self.tokens.push(id);
        self.token_types.push(token_type);
        self.closed.push(true);
        self.tgt_ptr.push(self.targets.len() as i64);
    }

    /// Opens the gap right of the newest token and says what it should receive.
    fn open(&mut self, ids: &[u32]) {
        if let (Some(closed), Some(end)) = (self.closed.last_mut(), self.tgt_ptr.last_mut()) {
            self.targets.extend(ids.iter().copied().map(i64::from));
            *closed = false;
            *end = self.targets.len() as i64;
        }
    }

    fn end_row(&mut self, sample_id: u64) {
        self.sample_ids.push(sample_id);
        self.row_ptr.push(self.tokens.len() as i64);
    }
}

impl Collator {
    /// Sequence to sequence: `[CLS] prompt.. [BOS]`, in the order given, and the whole answer right of BOS. CLS, the
    /// prompt and BOS have at most `input_block_size` ids, answers at most `block_size`.
    pub fn collate_prompts(&self, samples: &[(SampleKey, Example)]) -> PromptBatch {
        let room = self.prompt_room.map(|room| room.saturating_sub(1));
        let mut batch = PromptBatch::default();
        for (key, example) in samples {
            prompt_ids(&self.special, last(&example.prompt, room)).for_each(|token| batch.push(token));
            batch.open(&example.tokens[..example.tokens.len().min(self.target_room)]);
            batch.end_row(key.row);
        }
        batch
    }

    /// Unconditional: `[CLS] [BOS]` for each of `rows`, which number the texts; nothing is expected.
    pub fn collate_unconditional(&self, rows: Range<u64>) -> PromptBatch {
        let mut batch = PromptBatch::default();
        for row in rows {
            prompt_ids(&self.special, &[]).for_each(|token| batch.push(token));
            batch.open(&[]);
            batch.end_row(row);
        }
        batch
    }

    /// Infilling: rows as in training, in the order given. What the collator's [`Drops`](crate::Drops) leave is given,
    /// and exactly the gaps that lost something are open.
    pub fn collate_infilling(&self, samples: &[(SampleKey, Example)]) -> PromptBatch {
        let mut batch = PromptBatch::default();
        let mut dropped = Vec::new();
        for (key, example) in samples {
            let tokens = self.tokens(example);
            dropped.clear();
            dropped.resize(tokens.len(), false);
            self.drops.draw(*key, &mut dropped);
            prompt_ids(&self.special, self.prompt(example)).for_each(|token| batch.push(token));
            let mut rest = tokens;
            for run in dropped.chunk_by(|a, b| a == b) {
                let (ids, behind) = rest.split_at(run.len());
                rest = behind;
                if run[0] {
                    batch.open(ids);
                } else {
                    ids.iter().for_each(|&id| batch.push((i64::from(id), 1)));
                }
            }
            batch.end_row(key.row);
        }
        batch
    }
}
