//! Ranks that swap rows: the same step, with about as many tokens on every rank.

use std::sync::Arc;

use data_pipeline::{BatchPool, MicroBatchLimit, PlainMemory, Repacker, StepBatch};
use worker::assembly::Assembly;
use worker::comm::{Collectives, ReduceOp};
use worker::train::balance_ranks;

use crate::on_ranks;
use crate::proof::{Rank, batches, config};

/// Tokens of the rank that has the most, and of all.
fn tokens(comm: &mut dyn Collectives, step: &StepBatch) -> (f64, f64) {
    let own = f64::from(step.lengths().iter().sum::<u32>());
    let mut over_ranks = |op| {
        let mut value = [own];
        comm.all_reduce("tokens", op, value[..].as_mut().into()).expect("a sum");
        value[0]
    };
    (over_ranks(ReduceOp::Max), over_ranks(ReduceOp::Sum))
}

#[test]
fn swapped_rows_even_out_the_tokens_and_change_no_figure() {
    on_ranks("balance::swapped_rows_even_out_the_tokens_and_change_no_figure", &[2, 3], |comm| {
        const STEPS: usize = 4;
        let config = config(&["model.dropout=0.0"]);
        let assembly = Assembly::open(&config).expect("a tokenizer");
        let limit = MicroBatchLimit { rows: 2, visible_tokens: None };
        let repacker = Repacker::new(limit, BatchPool::new(Arc::new(PlainMemory), 64));
        let batches = batches(&config, &assembly, comm, STEPS);
        let mut ranks = [0, 1].map(|_| Rank::new(&config, &assembly, comm));
        let mut evened = 0;
        for read in batches {
            let dealt =
                balance_ranks(comm, &config.trainer, &repacker, read.clone()).expect("ranks that agree");
            let ((most, all), (most_dealt, all_dealt)) = (tokens(comm, &read), tokens(comm, &dealt));
            assert_eq!(all_dealt, all);
            assert!(most_dealt <= most, "{most_dealt} {most}");
            evened += usize::from(most_dealt < most);
            let [(one, digest), (other, digest_of_other)] =
                [(0, &read), (1, &dealt)].map(|(rank, batch)| ranks[rank].step(comm, batch).expect("a step"));
            assert_eq!(digest.samples, digest_of_other.samples);
            assert!((one.loss() - other.loss()).abs() < 1e-6 * one.loss());
            assert!((one.grad_norm - other.grad_norm).abs() < 1e-4 * one.grad_norm);
        }
        assert!(evened > 0, "no step was uneven");
    });
}

#[test]
fn the_switch_leaves_every_rank_its_rows() {
    on_ranks("balance::the_switch_leaves_every_rank_its_rows", &[2], |comm| {
        let config = config(&["trainer.balance_ranks=false"]);
        let assembly = Assembly::open(&config).expect("a tokenizer");
        let limit = MicroBatchLimit { rows: 2, visible_tokens: None };
        let repacker = Repacker::new(limit, BatchPool::new(Arc::new(PlainMemory), 64));
        for read in batches(&config, &assembly, comm, 3) {
            assert_eq!(balance_ranks(comm, &config.trainer, &repacker, read.clone()).expect("a step"), read);
        }
    });
}
