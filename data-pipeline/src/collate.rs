//! Examples to packed batches: cut to the block, drop, sort, and list what every gap lost.

use std::{cell::Cell, ops::Range, sync::Arc};

use crate::{
    batch::{BatchArrays, BatchLayout, PackedBatch},
    cut::MicroBatchLimit,
    dataset::Example,
    drop::{Drops, SampleKey},
    error::{Error, Result},
    pool::{BatchPool, Slab},
    tokenizer::SpecialTokens,
};

/// Makes batches of examples. Rows are `[CLS] prompt.. [BOS] token..`; only tokens after BOS are ever dropped.
///
/// What does not fit is cut before anything is dropped, so no target lies outside its row: tokens lose their end, a
/// prompt loses its start but never CLS.
#[derive(Clone)]
pub struct Collator {
    pub(crate) special: SpecialTokens,
    pub(crate) drops: Arc<dyn Drops>,
    /// Most ids of a prompt in training, and one less in prediction (where BOS shares the room).
    pub(crate) prompt_room: Option<usize>,
    /// Most ids after BOS.
    pub(crate) token_room: usize,
    /// Most ids of a prediction's target.
    pub(crate) target_room: usize,
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

    /// Drops and packs samples, given in the order of their slots, into one batch of ordinary memory.
    pub fn collate(&self, samples: &[(SampleKey, Example)]) -> PackedBatch {
        let mut scratch = SCRATCH.take();
        self.draw(samples, &mut scratch);
        let layout = layout(&scratch.rows);
        let slab = Slab::plain(vec![0; layout.words()]);
        let batch = self.pack(samples, &scratch.rows, &scratch.dropped, layout, slab);
        SCRATCH.set(scratch);
        batch
    }

    /// Drops the samples of a rank's step, given in the order of their slots, sorts them by visible length and packs
    /// them into as few micro-batches as the limit allows; none for no samples. The memory is the pool's.
    ///
    /// At debug level, target `data_pipeline::drop`, every sample leaves one line: position, epoch, sample id, number of
    /// tokens and dropped indices.
    ///
    /// # Errors
    /// [`Error::Setting`] for a limit of nothing; [`Error::HostMemory`] when the pool has no memory.
    pub fn collate_step(
        &self,
        samples: &[(SampleKey, Example)],
        limit: MicroBatchLimit,
        pool: &Arc<BatchPool>,
    ) -> Result<Vec<PackedBatch>> {
        limit.check()?;
        let mut scratch = SCRATCH.take();
        self.draw(samples, &mut scratch);
        log_drops(samples, &scratch);
        let Scratch { rows, dropped, lengths } = &mut scratch;
        lengths.clear();
        lengths.extend(rows.iter().map(|row| row.visible));
        let parts = limit.cut(lengths).into_iter().map(|part| {
            let rows = &rows[part];
            let layout = layout(rows);
            let slab = Slab::pooled(pool, layout.words())?;
            Ok(self.pack(samples, rows, dropped, layout, slab))
        });
        let batches = parts.collect();
        SCRATCH.set(scratch);
        batches
    }

    /// Decides what is dropped, and the order of the rows.
    fn draw(&self, samples: &[(SampleKey, Example)], scratch: &mut Scratch) {
        let Scratch { rows, dropped, .. } = scratch;
        rows.clear();
        dropped.clear();
        for (slot, (key, example)) in samples.iter().enumerate() {
            let first = dropped.len();
            dropped.resize(first + self.tokens(example).len(), false);
            let flags = &mut dropped[first..];
            self.drops.draw(*key, flags);
            let drops = flags.iter().map(|&flag| usize::from(flag)).sum();
            let visible = 2 + self.prompt(example).len() + flags.len() - drops;
            rows.push(Row { slot, first, tokens: flags.len(), drops, visible });
        }
        rows.sort_unstable_by_key(|row| (row.visible, row.slot));
    }

    /// Writes rows whose flags are drawn. `layout` has room for a target of every dropped token.
    fn pack(
        &self,
        samples: &[(SampleKey, Example)],
        rows: &[Row],
        dropped: &[bool],
        mut layout: BatchLayout,
        mut slab: Slab,
    ) -> PackedBatch {
        let mut arrays = layout.split(slab.words_mut());
        arrays.row_ptr[0] = 0;
        arrays.tgt_ptr[0] = 0;
        arrays.cls.fill(0);
        let mut end = End::default();
        for (index, row) in rows.iter().enumerate() {
            let example = &samples[row.slot].1;
            let first = end.visible;
            arrays.push_head(&self.special, self.prompt(example), &mut end);
            arrays.push_tokens(self.tokens(example), &dropped[row.flags()], &mut end);
            arrays.positions[first..end.visible]
                .iter_mut()
                .zip(0..)
                .for_each(|(place, index)| *place = index);
            arrays.row_ptr[index + 1] = end.visible as i64;
        }
        // Ids dropped twice in a gap left room behind: close it, so that the arrays stay end to end.
        let counts = layout.tgt_counts();
        layout.targets = end.targets;
        slab.words_mut().copy_within(counts.start..counts.start + end.targets, layout.tgt_counts().start);
        PackedBatch::new(rows.iter().map(|row| samples[row.slot].0).collect(), layout, slab)
    }

    /// What is left of the prompt.
    pub(crate) fn prompt<'a>(&self, example: &'a Example) -> &'a [u32] {
        last(&example.prompt, self.prompt_room)
    }

    /// What is left of the tokens.
    pub(crate) fn tokens<'a>(&self, example: &'a Example) -> &'a [u32] {
        &example.tokens[..example.tokens.len().min(self.token_room)]
    }
}

/// What a step's draw is kept in; every thread uses its own again.
#[derive(Default)]
struct Scratch {
    /// In the order of their visible lengths.
    rows: Vec<Row>,
    /// The flags of all samples, by slot.
    dropped: Vec<bool>,
    /// Visible tokens of the rows.
    lengths: Vec<usize>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// A sample after the draw.
#[derive(Clone, Copy)]
struct Row {
    slot: usize,
    /// Its first flag.
    first: usize,
    /// Tokens before dropping, which are its flags.
    tokens: usize,
    drops: usize,
    /// Visible tokens, CLS, BOS and the prompt included.
    visible: usize,
}

impl Row {
    fn flags(&self) -> Range<usize> {
        self.first..self.first + self.tokens
    }
}

/// Room for the rows, with a target for every dropped token.
fn layout(rows: &[Row]) -> BatchLayout {
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum();
    BatchLayout { rows: rows.len(), visible: sum(|row| row.visible), targets: sum(|row| row.drops) }
}

/// How far the arrays are filled.
#[derive(Default)]
struct End {
    visible: usize,
    targets: usize,
}

impl BatchArrays<&mut [i64]> {
    /// CLS, the prompt and BOS, whose gap stays open.
    fn push_head(&mut self, special: &SpecialTokens, prompt: &[u32], end: &mut End) {
        let head = end.visible..end.visible + prompt.len() + 2;
        for ((id, kind), at) in prompt_ids(special, prompt).zip(head.clone()) {
            self.tokens[at] = id;
            self.token_types[at] = kind;
        }
        self.tgt_ptr[head.start + 1..head.end].fill(end.targets as i64);
        end.visible = head.end;
    }

    /// The survivors, and what every gap from BOS on lost.
    fn push_tokens(&mut self, ids: &[u32], dropped: &[bool], end: &mut End) {
        let (mut visible, mut target) = (end.visible, end.targets);
        let (tokens, tgt_ids, tgt_ptr) = (&mut *self.tokens, &mut *self.tgt_ids, &mut *self.tgt_ptr);
        tgt_ptr[visible] = target as i64;
        for (&id, &dropped) in ids.iter().zip(dropped) {
            // Written to both places and kept in one: drops cannot be predicted, so no branch depends on them. Where
            // a place is the first one too many, nothing is kept there.
            put(tokens, visible, i64::from(id));
            put(tgt_ids, target, i64::from(id));
            visible += usize::from(!dropped);
            target += usize::from(dropped);
            tgt_ptr[visible] = target as i64;
        }
        self.token_types[end.visible..visible].fill(2);
        let gaps = &mut tgt_ptr[end.visible..=visible];
        *end = End { visible, targets: merge_gaps(gaps, tgt_ids, self.tgt_counts, end.targets) };
    }
}

/// Sorts the ids of consecutive gaps and counts equal ones. `ends` are the gaps' ends before and after, the first gap
/// starts at entry `first`. Returns the entry behind the last one.
fn merge_gaps(ends: &mut [i64], ids: &mut [i64], counts: &mut [i64], first: usize) -> usize {
    let (mut start, mut target) = (first, first);
    for end in ends {
        let gap = start..*end as usize;
        start = gap.end;
        if gap.len() < 2 {
            // An empty gap writes too, where nothing is kept yet: no branch depends on the drops.
            if let Some(&id) = ids.get(gap.start) {
                ids[target] = id;
                counts[target] = 1;
            }
            target += gap.len();
        } else {
            ids[gap.clone()].sort_unstable();
            target = count_equal(gap, ids, counts, target);
        }
        *end = target as i64;
    }
    target
}

/// Moves the sorted ids of a gap to entry `target`, equal ones as one entry. Returns the entry behind the last one.
fn count_equal(gap: Range<usize>, ids: &mut [i64], counts: &mut [i64], target: usize) -> usize {
    let (mut last, mut count, mut newest) = (target, 0, ids[gap.start]);
    for at in gap {
        let id = ids[at];
        let differs = id != newest;
        last += usize::from(differs);
        count = if differs { 1 } else { count + 1 };
        newest = id;
        ids[last] = id;
        counts[last] = count;
    }
    last + 1
}

fn put(array: &mut [i64], at: usize, value: i64) {
    if let Some(place) = array.get_mut(at) {
        *place = value;
    }
}

/// Ids and types of CLS, the prompt and BOS.
pub(crate) fn prompt_ids(special: &SpecialTokens, prompt: &[u32]) -> impl Iterator<Item = (i64, i64)> {
    let prompt = prompt.iter().map(|&id| (i64::from(id), 1));
    std::iter::once((i64::from(special.cls), 0)).chain(prompt).chain([(i64::from(special.bos), 2)])
}

/// The last `room` ids.
pub(crate) fn last(ids: &[u32], room: Option<usize>) -> &[u32] {
    &ids[ids.len() - room.unwrap_or(ids.len()).min(ids.len())..]
}

fn log_drops(samples: &[(SampleKey, Example)], scratch: &Scratch) {
    if !tracing::enabled!(target: "data_pipeline::drop", tracing::Level::DEBUG) {
        return;
    }
    for row in &scratch.rows {
        let key = &samples[row.slot].0;
        let flags = &scratch.dropped[row.flags()];
        let indices: Vec<usize> = (0..flags.len()).filter(|&index| flags[index]).collect();
        tracing::debug!(
            target: "data_pipeline::drop",
            position = key.position,
            epoch = key.epoch,
            sample = key.row,
            tokens = row.tokens,
            dropped = ?indices,
        );
    }
}
