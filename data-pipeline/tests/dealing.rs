//! Rows that ranks compute for each other: the same rows with the same drops, and about as many tokens on every rank.

mod streams;

use std::sync::Arc;

use data_pipeline::{
    BatchPool, Dataset, Deal, Error, Example, MicroBatchLimit, PackedBatch, PlainMemory, Repacker, Result,
    StepBatch,
};
use streams::{Run, mixture, step_rows};

const RUN: usize = 64;

/// Rows of 1 to 13 tokens.
struct Uneven;

impl Dataset for Uneven {
    fn len(&self) -> u64 {
        300
    }
    fn groups(&self) -> &[u64] {
        &[90, 70, 100, 40]
    }
    fn example(&self, row: u64) -> Result<Option<Example>> {
        let tokens = (0..1 + row * row % 13).map(|token| 7 + ((row + token * 5) % 20) as u32).collect();
        Ok(Some(Example { prompt: vec![], tokens }))
    }
    fn fingerprint(&self) -> &str {
        "uneven"
    }
}

fn rows() -> Arc<dyn Dataset> {
    Arc::new(Uneven)
}

/// First steps of every rank.
fn world(world: usize, dataset: &Arc<dyn Dataset>) -> Vec<StepBatch> {
    Run::alone(RUN).world(world, dataset, 1).into_iter().flatten().collect()
}

fn repacker(rows: usize, visible_tokens: Option<usize>) -> Repacker {
    Repacker::new(MicroBatchLimit { rows, visible_tokens }, BatchPool::new(Arc::new(PlainMemory), 64))
}

fn tokens(step: &StepBatch) -> u32 {
    step.lengths().iter().sum()
}

#[test]
fn the_same_rows_are_computed_and_ranks_have_as_many_tokens() {
    for dataset in [rows(), mixture()] {
        for ranks in [2, 3, 5, 16] {
            let before = world(ranks, &dataset);
            let after = repacker(16, None).deal_all(before.clone()).unwrap();
            assert_eq!(step_rows(&after), step_rows(&before));
            let counts =
                |steps: &[StepBatch]| steps.iter().map(|step| step.lengths().len()).collect::<Vec<_>>();
            assert_eq!(counts(&after), counts(&before), "of rows");
            let fullest = |steps: &[StepBatch]| steps.iter().map(tokens).max().unwrap();
            let mean = after.iter().map(tokens).sum::<u32>() / ranks as u32;
            assert!(fullest(&after) <= fullest(&before));
            if dataset.fingerprint() == "uneven" && ranks < 16 {
                assert!(fullest(&after) <= mean + mean / 64 + 1, "{ranks}: {} {mean}", fullest(&after));
                assert!(ranks != 2 || fullest(&before) > fullest(&after), "a deal that does something");
            }
        }
    }
}

#[test]
fn a_dealt_step_is_packed_as_if_its_rows_had_come_from_a_collator() {
    let before = world(2, &rows());
    let (given, taken) = {
        let deal = Deal::new(&[before[0].lengths(), before[1].lengths()]);
        assert!(!deal.is_trivial());
        (before[0].given(&deal, 0).rows(), before[1].given(&deal, 1).rows())
    };
    assert!(given > 0 && given == taken);
    for (step, number) in repacker(5, None).deal_all(before.clone()).unwrap().iter().zip(0..) {
        assert_eq!(
            (step.position, step.next_position),
            (before[number].position, before[number].next_position)
        );
        assert_eq!(step.micro_batches.len(), 7, "32 rows, at most 5 at a time");
        let order = |batch: &PackedBatch| {
            (0..batch.rows())
                .map(|row| (batch.row(row).len(), batch.samples()[row].position))
                .collect::<Vec<_>>()
        };
        let order: Vec<_> = step.micro_batches.iter().flat_map(order).collect();
        assert!(order.is_sorted());
        for batch in &step.micro_batches {
            let positions = (0..batch.rows()).flat_map(|row| 0..batch.row(row).len() as i64);
            assert!(batch.positions().iter().copied().eq(positions));
            assert_eq!(PackedBatch::from_bytes(&batch.to_bytes()).unwrap(), *batch);
        }
    }
    let by_tokens = repacker(usize::MAX, Some(40)).deal_all(before).unwrap();
    let batches = by_tokens.iter().flat_map(|step| &step.micro_batches);
    assert!(batches.clone().all(|batch| batch.visible() <= 40) && batches.count() > 2);
}

#[test]
fn a_step_that_is_not_dealt_anew_stays_as_it_was() {
    let alone = world(1, &rows());
    assert_eq!(repacker(16, None).deal_all(alone.clone()).unwrap(), alone);
}

#[test]
fn bytes_of_another_rank_are_checked() {
    let steps = world(2, &rows());
    let bytes = steps[0].micro_batches[0].to_bytes();
    for wrong in [&[][..], &bytes[..8], &bytes[..bytes.len() - 4], &[255; 40]] {
        assert!(matches!(PackedBatch::from_bytes(wrong), Err(Error::Plan(_))));
    }
    assert_eq!(PackedBatch::from_bytes(&PackedBatch::default().to_bytes()).unwrap().rows(), 0);
    let deal = Deal::new(&[steps[0].lengths(), steps[1].lengths()]);
    let nothing = [PackedBatch::default(), PackedBatch::default()];
    let refused = repacker(16, None).deal(steps[0].clone(), &deal, 0, &nothing).unwrap_err();
    assert!(refused.to_string().contains("rank 1 gave fewer rows"), "{refused}");
}
