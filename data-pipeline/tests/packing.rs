//! Packed batches lose nothing: every source token is visible or a target of exactly one gap, in recycled memory too.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use data_pipeline::{
    BatchArrays, BatchPool, Collator, DescribeOptions, Drops, Example, HostMemory, HostSlab, KeyedDrops,
    MicroBatchLimit, PackedBatch, PlainMemory, Result, SampleKey, SpanDrops, SpecialTokens, Tokenizer,
    describe_batch,
};
use proptest::prelude::*;

const SEED: u64 = 9;

fn special() -> SpecialTokens {
    *Tokenizer::numbers(20).special()
}

fn collator(seq2seq: bool) -> Collator {
    let drops = Arc::new(KeyedDrops::new(SEED));
    if seq2seq {
        Collator::seq2seq(Some(5), 14, &special(), drops).unwrap()
    } else {
        Collator::language(16, &special(), drops).unwrap()
    }
}

type Samples = Vec<(SampleKey, Example)>;

/// Few different ids, so that gaps lose the same id twice; some rows are longer than the block.
fn samples() -> impl Strategy<Value = Samples> {
    let ids = |most| prop::collection::vec(7u32..11, 0..most);
    prop::collection::vec((ids(8), ids(24)), 0..40).prop_map(|rows| {
        let key = |row| SampleKey { position: row + 100, epoch: 3, row };
        (0..).zip(rows).map(|(row, (prompt, tokens))| (key(row), Example { prompt, tokens })).collect()
    })
}

fn plain_pool(kept: usize) -> Arc<BatchPool> {
    BatchPool::new(Arc::new(PlainMemory), kept)
}

/// Visible ids, their types, and what each gap lost, made the slow way.
#[derive(Debug, PartialEq)]
struct PlainRow {
    ids: Vec<i64>,
    kinds: Vec<i64>,
    gaps: Vec<BTreeMap<i64, i64>>,
}

impl PlainRow {
    fn of_sample((key, example): &(SampleKey, Example), seq2seq: bool) -> Self {
        let prompt = match seq2seq {
            true => &example.prompt[example.prompt.len().saturating_sub(4)..],
            false => &[],
        };
        let tokens = &example.tokens[..example.tokens.len().min(if seq2seq { 13 } else { 14 })];
        let mut dropped = vec![false; tokens.len()];
        KeyedDrops::new(SEED).draw(*key, &mut dropped);
        let mut row = Self { ids: vec![], kinds: vec![], gaps: vec![] };
        row.push(special().cls, 0);
        prompt.iter().for_each(|&id| row.push(id, 1));
        row.push(special().bos, 2);
        for (&id, dropped) in tokens.iter().zip(dropped) {
            if dropped {
                *row.gaps.last_mut().unwrap().entry(i64::from(id)).or_insert(0) += 1;
            } else {
                row.push(id, 2);
            }
        }
        row
    }

    fn push(&mut self, id: u32, kind: i64) {
        self.ids.push(i64::from(id));
        self.kinds.push(kind);
        self.gaps.push(BTreeMap::new());
    }

    fn of_batch(batch: &PackedBatch, row: usize) -> Self {
        let tokens = batch.row(row);
        assert!(batch.positions()[tokens.clone()].iter().copied().eq(0..tokens.len() as i64));
        assert_eq!(batch.cls()[row], 0);
        let gap = |token: usize| {
            let entries = batch.gap(token);
            assert!(batch.tgt_ids()[entries.clone()].is_sorted_by(|a, b| a < b), "ids of a gap ascend");
            entries.map(|entry| (batch.tgt_ids()[entry], batch.tgt_counts()[entry])).collect()
        };
        Self {
            ids: batch.tokens()[tokens.clone()].to_vec(),
            kinds: batch.token_types()[tokens.clone()].to_vec(),
            gaps: tokens.map(gap).collect(),
        }
    }
}

fn limits() -> impl Strategy<Value = MicroBatchLimit> {
    (1usize..12, prop::option::of(1usize..60))
        .prop_map(|(rows, visible_tokens)| MicroBatchLimit { rows, visible_tokens })
}

proptest! {
    #[test]
    fn every_token_is_visible_or_in_one_gap(samples in samples(), seq2seq: bool) {
        let batch = collator(seq2seq).collate(&samples);
        prop_assert_eq!(batch.rows(), samples.len());
        let mut order = Vec::new();
        for (row, key) in batch.samples().iter().enumerate() {
            let sample = &samples[key.row as usize];
            prop_assert_eq!(*key, sample.0);
            let wanted = PlainRow::of_sample(sample, seq2seq);
            prop_assert_eq!(batch.n_drops(row), wanted.gaps.iter().flat_map(BTreeMap::values).sum::<i64>());
            order.push((wanted.ids.len(), key.row));
            prop_assert_eq!(PlainRow::of_batch(&batch, row), wanted);
        }
        prop_assert!(order.is_sorted(), "by visible length, then by slot");
    }

    #[test]
    fn a_step_is_the_one_batch_in_pieces(samples in samples(), limit in limits()) {
        let whole = collator(false).collate(&samples);
        let pool = plain_pool(8);
        let parts = collator(false).collate_step(&samples, limit, &pool).unwrap();
        prop_assert_eq!(samples.is_empty(), parts.is_empty());
        let mut rows = 0..whole.rows();
        for part in &parts {
            prop_assert!((1..=limit.rows).contains(&part.rows()));
            prop_assert!(part.rows() == 1 || limit.visible_tokens.is_none_or(|most| part.visible() <= most));
            for row in 0..part.rows() {
                let other = rows.next().unwrap();
                prop_assert_eq!(part.samples()[row], whole.samples()[other]);
                prop_assert_eq!(PlainRow::of_batch(part, row), PlainRow::of_batch(&whole, other));
            }
        }
        prop_assert!(rows.is_empty());
        let all = MicroBatchLimit { rows: usize::MAX, visible_tokens: None };
        let one = collator(false).collate_step(&samples, all, &pool).unwrap();
        prop_assert!(samples.is_empty() || one == [whole]);
    }

    #[test]
    fn recycled_memory_changes_nothing(first in samples(), second in samples(), limit in limits()) {
        let pool = plain_pool(64);
        let collate = |samples: &Samples, pool: &Arc<BatchPool>| collator(true).collate_step(samples, limit, pool).unwrap();
        let fresh = collate(&second, &plain_pool(0));
        drop(collate(&first, &pool));
        prop_assert_eq!(collate(&second, &pool), fresh.clone());
        drop(collate(&second, &pool));
        prop_assert_eq!(collate(&second, &pool), fresh);
    }
}

fn some_samples(rows: u64) -> Samples {
    let key = |row| SampleKey { position: row, epoch: 0, row };
    let tokens = |row: u64| (0..5 + row as u32 % 9).map(|index| 7 + (index * 3 + row as u32) % 20).collect();
    (0..rows).map(|row| (key(row), Example { prompt: vec![], tokens: tokens(row) })).collect()
}

/// Counts its slabs.
#[derive(Default)]
struct Counted(AtomicUsize);

impl HostMemory for Counted {
    fn allocate(&self, words: usize) -> Result<Box<dyn HostSlab>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        PlainMemory.allocate(words)
    }
}

#[test]
fn a_stream_of_steps_needs_no_new_memory() {
    let memory = Arc::new(Counted::default());
    let pool = BatchPool::new(memory.clone(), 6);
    let limit = MicroBatchLimit { rows: 16, visible_tokens: None };
    for step in 0..50 {
        let mut samples = some_samples(64);
        samples.iter_mut().for_each(|(key, _)| key.epoch = step);
        let batches = collator(false).collate_step(&samples, limit, &pool).unwrap();
        assert_eq!(batches.len(), 4);
    }
    assert_eq!((memory.0.load(Ordering::SeqCst), pool.free()), (4, 4));
}

#[test]
fn one_copy_carries_all_arrays_and_they_make_the_batch_again() {
    let batch = collator(false).collate(&some_samples(20));
    let arrays = BatchArrays {
        row_ptr: batch.row_ptr(),
        cls: batch.cls(),
        tokens: batch.tokens(),
        positions: batch.positions(),
        token_types: batch.token_types(),
        tgt_ptr: batch.tgt_ptr(),
        tgt_ids: batch.tgt_ids(),
        tgt_counts: batch.tgt_counts(),
    };
    let in_order = [
        arrays.row_ptr,
        arrays.cls,
        arrays.tokens,
        arrays.positions,
        arrays.token_types,
        arrays.tgt_ptr,
        arrays.tgt_ids,
        arrays.tgt_counts,
    ];
    assert_eq!(batch.words(), in_order.concat());
    assert_eq!(PackedBatch::from_arrays(batch.samples().to_vec(), arrays).unwrap(), batch);
    assert_eq!(batch.clone(), batch);
    let short = BatchArrays { positions: &arrays.positions[1..], ..arrays };
    assert!(PackedBatch::from_arrays(batch.samples().to_vec(), short).unwrap_err().is_config());
    assert!(PackedBatch::from_arrays(batch.samples()[1..].to_vec(), arrays).is_err());
    assert_eq!(PackedBatch::default(), collator(false).collate(&[]));
}

#[test]
fn a_limit_of_nothing_is_refused() {
    for limit in [
        MicroBatchLimit { rows: 0, visible_tokens: None },
        MicroBatchLimit { rows: 4, visible_tokens: Some(0) },
    ] {
        assert!(
            collator(false).collate_step(&some_samples(3), limit, &plain_pool(1)).unwrap_err().is_config()
        );
    }
}

#[test]
fn infilling_opens_exactly_the_gaps_of_the_missing_spans() {
    let samples = some_samples(30);
    let drops = Arc::new(SpanDrops::new(4, 2, 0.4).unwrap());
    let collator = Collator::language(64, &special(), drops.clone()).unwrap();
    let batch = collator.collate_infilling(&samples);
    assert_eq!(batch.rows(), 30);
    for (row, (key, example)) in samples.iter().enumerate() {
        let mut dropped = vec![false; example.tokens.len()];
        drops.draw(*key, &mut dropped);
        let tokens = batch.row(row);
        assert_eq!(batch.tokens[tokens.start..][..2], [1, 4]);
        assert_eq!(tokens.len() - 2, dropped.iter().filter(|&&flag| !flag).count());
        assert!(batch.token_types[tokens.start + 2..tokens.end].iter().all(|&kind| kind == 1));
        // Filling the open gaps gives the text back.
        let mut text = Vec::new();
        for token in tokens.clone() {
            let gap = &batch.targets[batch.tgt_ptr[token] as usize..batch.tgt_ptr[token + 1] as usize];
            assert_eq!(batch.closed[token], gap.is_empty());
            text.push(batch.tokens[token]);
            text.extend(gap);
        }
        assert!(text[2..].iter().copied().eq(example.tokens.iter().map(|&id| i64::from(id))));
        assert_eq!(batch.closed[tokens].iter().filter(|&&closed| !closed).count(), 2);
    }
}

/// Drops the tokens at fixed places.
struct Places(&'static [usize]);

impl Drops for Places {
    fn draw(&self, _: SampleKey, dropped: &mut [bool]) {
        self.0.iter().for_each(|&place| dropped[place] = true);
    }
}

fn described(options: &DescribeOptions, prompt: Vec<u32>, tokens: Vec<u32>) -> String {
    let collator = Collator::seq2seq(None, 200, &special(), Arc::new(Places(&[1, 2, 3, 4, 7]))).unwrap();
    let key = SampleKey { position: 5, epoch: 2, row: 17 };
    let batch = collator.collate(&[(key, Example { prompt, tokens })]);
    describe_batch(&batch, &Tokenizer::numbers(200), options)
}

#[test]
fn a_described_batch_shows_text_gaps_and_counts() {
    let text = described(&DescribeOptions::default(), vec![7, 8], (10..20).chain([12]).collect());
    assert_eq!(
        text,
        "1 rows of 10 to 10 visible tokens, 10 in all (2 of them CLS and BOS, 2 of prompts); 5 of 11 source tokens dropped \
         (45 %) in 2 gaps; 0 rows lost nothing\n\
         row 0 of 1: sample 17, epoch 2, position 5: 10 visible, 5 dropped in 2 gaps\n\
         \x20 [CLS] prompt{0 1} [BOS] 3 [+4: \"4\" \"5\" \"6\" \"7\"] 8 9 [+1: \"10\"] 11 12 5"
    );
    let double = described(&DescribeOptions::default(), vec![], vec![10, 12, 12, 12, 11, 15, 16, 12]);
    assert!(double.ends_with("[CLS] [BOS] 3 [+4: \"4\" \"5\" x3] 8 9 [+1: \"5\"]"), "{double}");
    let few = DescribeOptions { gap_ids: 2, ..DescribeOptions::default() };
    assert!(described(&few, vec![], (10..20).collect()).contains("3 [+4: \"4\" \"5\" and 2 other ids] 8"));
}

#[test]
fn long_rows_are_shortened_and_colours_come_when_asked() {
    let short = DescribeOptions { tokens: 6, ..DescribeOptions::default() };
    let text = described(&short, vec![], (10..30).collect());
    assert!(
        text.ends_with(
            "  [CLS] [BOS] 3 [+4: \"4\" \"5\" \"6\" \"7\"] ... 11 visible and 1 dropped tokens ... 20 21 22"
        ),
        "{text}"
    );
    assert!(!text.contains('\x1b'));
    let colored = DescribeOptions { color: true, ..DescribeOptions::default() };
    assert!(described(&colored, vec![7], (10..30).collect()).contains("\x1b[32m[+4:"));
    let samples = some_samples(20);
    let one = DescribeOptions { rows: 3, ..DescribeOptions::default() };
    let text = describe_batch(&collator(false).collate(&samples), &Tokenizer::numbers(20), &one);
    assert!(
        text.contains("row 0 of 20") && text.contains("row 19 of 20") && text.ends_with("(17 more rows)")
    );
    assert!(describe_batch(&PackedBatch::default(), &Tokenizer::numbers(20), &one).starts_with("0 rows"));
}
