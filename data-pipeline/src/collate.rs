//! Examples to packed batches: cut to the block, drop, sort, and list what every gap lost.

use std::sync::Arc;

use crate::{
    batch::{BatchPool, PackedBatch, PromptBatch},
    dataset::Example,
    drop::{Drops, SampleKey, log_drops},
    error::{Error, Result},
    tokenizer::SpecialTokens,
};

/// Makes batches of examples. Rows are `[CLS] prompt.. [BOS] token..`; only tokens after BOS are ever dropped.
///
/// What does not fit is cut before anything is dropped, so no target lies outside its row: tokens lose their end, a
/// prompt loses its start but never CLS.
#[derive(Clone)]
pub struct Collator {
    special: SpecialTokens,
    drops: Arc<dyn Drops>,
    /// Most ids of a prompt in training, and one less in prediction (where BOS shares the room).
    prompt_room: Option<usize>,
    /// Most ids after BOS.
    token_room: usize,
    /// Most ids of a prediction's target.
    target_room: usize,
}

impl Collator {
    /// For language modelling: a row of CLS, BOS and tokens has at most `block_size` ids before dropping.
    ///
    /// # Errors
    /// [`Error::Setting`] when CLS and BOS do not fit.
    pub fn language(block_size: usize, special: &SpecialTokens, drops: Arc<dyn Drops>) -> Result<Self> {
        let token_room = block_size.checked_sub(2).ok_or_else(|| {
            Error::Setting(format!("block_size = {block_size} has no room for CLS and BOS; use at least 2"))
        })?;
        Ok(Self { special: *special, drops, prompt_room: Some(0), token_room, target_room: block_size })
    }

    /// For sequence to sequence: CLS and the prompt have at most `input_block_size` ids (none: no limit), BOS and the
    /// tokens at most `block_size` before dropping.
    ///
    /// # Errors
    /// [`Error::Setting`] when CLS and BOS do not fit.
    pub fn seq2seq(
        input_block_size: Option<usize>,
        block_size: usize,
        special: &SpecialTokens,
        drops: Arc<dyn Drops>,
    ) -> Result<Self> {
        let token_room = block_size
            .checked_sub(1)
            .ok_or_else(|| Error::Setting("block_size = 0 has no room for BOS; use at least 1".into()))?;
        let prompt_room = match input_block_size {
            None => None,
            Some(size @ 0..2) => {
                return Err(Error::Setting(format!(
                    "input_block_size = {size} has no room for CLS and BOS; use at least 2"
                )));
            }
            Some(size) => Some(size - 1),
        };
        Ok(Self { special: *special, drops, prompt_room, token_room, target_room: block_size })
    }

    /// Drops and packs samples, given in the order of their slots.
    pub fn collate(&self, samples: &[(SampleKey, Example)]) -> PackedBatch {
        self.collate_with(samples, |_, _| {})
    }

    /// Like [`collate`](Self::collate), and shows every sample's drop flags in the order of the slots.
    pub(crate) fn collate_with(
        &self,
        samples: &[(SampleKey, Example)],
        mut observe: impl FnMut(&SampleKey, &[bool]),
    ) -> PackedBatch {
        let mut rows: Vec<Row<'_>> = samples
            .iter()
            .map(|(key, example)| {
                let prompt = last(&example.prompt, self.prompt_room);
                let tokens = &example.tokens[..example.tokens.len().min(self.token_room)];
                let mut dropped = vec![false; tokens.len()];
                self.drops.draw(*key, &mut dropped);
                observe(key, &dropped);
                Row { sample_id: key.row, prompt, tokens, dropped }
            })
            .collect();
        rows.sort_by_cached_key(Row::visible);

        let mut batch = PackedBatch { row_ptr: vec![0], tgt_ptr: vec![0], ..PackedBatch::default() };
        let mut gap = Vec::new();
        for row in &rows {
            self.push_row(&mut batch, row, &mut gap);
        }
        batch
    }

    /// The micro-batches of a rank's part of a step: rows sorted by visible length, cut within `limit`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the host has no memory for a batch.
    pub fn collate_step(
        &self,
        samples: &[(SampleKey, Example)],
        limit: MicroBatchLimit,
        _pool: &Arc<BatchPool>,
    ) -> Result<Vec<PackedBatch>> {
        Ok(samples.chunks(limit.rows.max(1)).map(|part| self.collate_with(part, log_drops)).collect())
    }

    fn push_row(&self, batch: &mut PackedBatch, row: &Row<'_>, gap: &mut Vec<u32>) {
        let start = batch.tokens.len();
        batch.sample_ids.push(row.sample_id);
        batch.cls.push(0);
        let head = prompt_ids(&self.special, row.prompt);
        let last_of_head = row.prompt.len() + 1;
        for (index, (id, token_type)) in head.enumerate() {
            batch.push_token(id, token_type);
            if index < last_of_head {
                batch.close_gap(gap);
            }
        }
        // The gap of BOS is open: what is dropped before the first survivor belongs to it.
        for (&id, &dropped) in row.tokens.iter().zip(&row.dropped) {
            if dropped {
                gap.push(id);
            } else {
                batch.close_gap(gap);
                batch.push_token(i64::from(id), 2);
            }
        }
        batch.close_gap(gap);
        batch.positions.extend(0..(batch.tokens.len() - start) as i64);
        batch.row_ptr.push(batch.tokens.len() as i64);
    }

    /// Prompts for prediction, in the order given: CLS, the prompt and BOS have at most `input_block_size` ids, targets
    /// at most `block_size`.
    pub fn collate_prompts(&self, samples: &[(SampleKey, Example)]) -> PromptBatch {
        let room = self.prompt_room.map(|room| room.saturating_sub(1));
        let mut batch = PromptBatch { row_ptr: vec![0], ..PromptBatch::default() };
        for (key, example) in samples {
            batch.sample_ids.push(key.row);
            for (id, token_type) in prompt_ids(&self.special, last(&example.prompt, room)) {
                batch.tokens.push(id);
                batch.token_types.push(token_type);
            }
            batch.row_ptr.push(batch.tokens.len() as i64);
            let target = example.tokens.iter().take(self.target_room).copied().map(i64::from);
            batch.targets.push(target.collect());
        }
        batch
    }
}

/// What a micro-batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatchLimit {
    /// Most rows.
    pub rows: usize,
    /// Most visible tokens (none: any number).
    pub visible_tokens: Option<usize>,
}

/// A sample after the draw.
struct Row<'a> {
    sample_id: u64,
    prompt: &'a [u32],
    tokens: &'a [u32],
    dropped: Vec<bool>,
}

impl Row<'_> {
    fn visible(&self) -> usize {
        self.prompt.len() + self.dropped.iter().filter(|dropped| !**dropped).count()
    }
}

impl PackedBatch {
    fn push_token(&mut self, id: i64, token_type: i64) {
        self.tokens.push(id);
        self.token_types.push(token_type);
    }

    /// Ends the gap right of the newest token; `gap` holds the ids dropped in it and is emptied.
    fn close_gap(&mut self, gap: &mut Vec<u32>) {
        gap.sort_unstable();
        for same in gap.chunk_by(|a, b| a == b) {
            self.tgt_ids.push(i64::from(same[0]));
            self.tgt_counts.push(same.len() as i64);
        }
        gap.clear();
        self.tgt_ptr.push(self.tgt_ids.len() as i64);
    }
}

/// Ids and types of CLS, the prompt and BOS.
fn prompt_ids(special: &SpecialTokens, prompt: &[u32]) -> impl Iterator<Item = (i64, i64)> {
    let prompt = prompt.iter().map(|&id| (i64::from(id), 1));
    std::iter::once((i64::from(special.cls), 0)).chain(prompt).chain([(i64::from(special.bos), 2)])
}

/// The last `room` ids.
fn last(ids: &[u32], room: Option<usize>) -> &[u32] {
    &ids[ids.len() - room.unwrap_or(ids.len()).min(ids.len())..]
}
