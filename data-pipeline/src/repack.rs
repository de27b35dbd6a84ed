//! Rows of packed batches to other packed batches: what a rank computes after rows were dealt out anew.

use std::{ops::Range, sync::Arc};

use crate::{
    batch::{BatchLayout, PackedBatch},
    cut::MicroBatchLimit,
    deal::Deal,
    drop::SampleKey,
    error::{Error, Result},
    loader::StepBatch,
    pool::{BatchPool, Slab},
};

/// Packs the rows that a rank computes of a step into micro-batches.
#[derive(Debug, Clone)]
pub struct Repacker {
    limit: MicroBatchLimit,
    pool: Arc<BatchPool>,
}

impl Repacker {
    /// Micro-batches within `limit`, which holds something, in memory of `pool`.
    pub fn new(limit: MicroBatchLimit, pool: Arc<BatchPool>) -> Self {
        Self { limit, pool }
    }

    /// What `rank`, whose own step this is, computes by `deal`; `given` are the [given](StepBatch::given) rows of every rank.
    ///
    /// # Errors
    /// [`Error::HostMemory`] when the pool has no memory; [`Error::Plan`] when a rank gave other rows than were dealt.
    pub fn deal(
        &self,
        step: StepBatch,
        deal: &Deal,
        rank: usize,
        given: &[PackedBatch],
    ) -> Result<StepBatch> {
        let away = deal.given(rank);
        if away.is_empty() {
            // Rows are swapped, so nothing is taken either.
            return Ok(step);
        }
        let own = step.rows().enumerate().filter(|(number, _)| away.binary_search(number).is_err());
        let mut rows: Vec<Row<'_>> = own.map(|(_, row)| row).collect();
        for (rank, index) in deal.taken(rank) {
            let batch = given.get(rank).filter(|batch| index < batch.rows());
            let batch =
                batch.ok_or_else(|| Error::Plan(format!("rank {rank} gave fewer rows than were dealt")))?;
            rows.push(Row { batch, index });
        }
        // As collators sort: slots of a step ascend with their positions.
        rows.sort_unstable_by_key(|row| (row.visible(), row.key().position));
        let lengths: Vec<usize> = rows.iter().map(Row::visible).collect();
        let micro_batch = |rows: &[Row<'_>]| {
            let layout = layout(rows);
            Ok(pack(rows, layout, Slab::pooled(&self.pool, layout.words())?))
        };
        let micro_batches = self.limit.cut(&lengths).into_iter().map(|part| micro_batch(&rows[part]));
        let micro_batches = micro_batches.collect::<Result<_>>()?;
        Ok(StepBatch { micro_batches, ..step })
    }

    /// The same for the steps of all ranks in one process.
    ///
    /// # Errors
    /// As [`deal`](Self::deal).
    pub fn deal_all(&self, steps: Vec<StepBatch>) -> Result<Vec<StepBatch>> {
        let lengths: Vec<_> = steps.iter().map(StepBatch::lengths).collect();
        let deal = Deal::new(&lengths);
        let given: Vec<_> = steps.iter().enumerate().map(|(rank, step)| step.given(&deal, rank)).collect();
        steps.into_iter().enumerate().map(|(rank, step)| self.deal(step, &deal, rank, &given)).collect()
    }
}

impl StepBatch {
    /// Visible tokens of every row, micro-batch after micro-batch: what [`Deal`] wants to know.
    pub fn lengths(&self) -> Vec<u32> {
        self.rows().map(|row| row.visible() as u32).collect()
    }

    /// The rows that `deal` gives to other ranks than `rank`, whose step this is.
    pub fn given(&self, deal: &Deal, rank: usize) -> PackedBatch {
        let rows: Vec<Row<'_>> = self.rows().collect();
        let given: Vec<Row<'_>> = deal.given(rank).iter().filter_map(|&row| rows.get(row)).copied().collect();
        let layout = layout(&given);
        pack(&given, layout, Slab::plain(vec![0; layout.words()]))
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.micro_batches.iter().flat_map(|batch| (0..batch.rows()).map(move |index| Row { batch, index }))
    }
}

/// A row of a batch.
#[derive(Clone, Copy)]
struct Row<'a> {
    batch: &'a PackedBatch,
    index: usize,
}

impl Row<'_> {
    fn key(&self) -> SampleKey {
        self.batch.samples()[self.index]
    }

    fn visible(&self) -> usize {
        self.batch.row(self.index).len()
    }

    /// Its target entries in the batch.
    fn targets(&self) -> Range<usize> {
        let tokens = self.batch.row(self.index);
        let ends = self.batch.tgt_ptr();
        ends[tokens.start] as usize..ends[tokens.end] as usize
    }
}

fn layout(rows: &[Row<'_>]) -> BatchLayout {
    let visible = rows.iter().map(Row::visible).sum();
    let targets = rows.iter().map(|row| row.targets().len()).sum();
    BatchLayout { rows: rows.len(), visible, targets }
}

/// The rows end to end in a slab with room for them.
fn pack(rows: &[Row<'_>], layout: BatchLayout, mut slab: Slab) -> PackedBatch {
    let to = layout.split(slab.words_mut());
    (to.row_ptr[0], to.tgt_ptr[0]) = (0, 0);
    let (mut visible, mut targets) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        let from = row.batch;
        let (tokens, entries) = (from.row(row.index), row.targets());
        let (here, entries_here) = (visible..visible + tokens.len(), targets..targets + entries.len());
        to.cls[at] = from.cls()[row.index];
        to.tokens[here.clone()].copy_from_slice(&from.tokens()[tokens.clone()]);
        to.positions[here.clone()].copy_from_slice(&from.positions()[tokens.clone()]);
        to.token_types[here.clone()].copy_from_slice(&from.token_types()[tokens.clone()]);
        to.tgt_ids[entries_here.clone()].copy_from_slice(&from.tgt_ids()[entries.clone()]);
        to.tgt_counts[entries_here.clone()].copy_from_slice(&from.tgt_counts()[entries.clone()]);
        let ends = &from.tgt_ptr()[tokens.start + 1..=tokens.end];
        let ends_here = &mut to.tgt_ptr[here.start + 1..=here.end];
        for (to, end) in ends_here.iter_mut().zip(ends) {
            *to = end - entries.start as i64 + targets as i64;
        }
        (visible, targets) = (here.end, entries_here.end);
        to.row_ptr[at + 1] = visible as i64;
    }
    PackedBatch::new(rows.iter().map(Row::key).collect(), layout, slab)
}
