//! Ranks that notice what one of them has alone: other parameters, or a loss that is not finite.

use half::bf16;
use std::sync::Arc;

use data_pipeline::{
    BatchPlan, BatchPool, LoaderOptions, MicroBatchLimit, PlainMemory, Split, StepBatch, TrainLoader,
    TrainStream,
};
use worker::assembly::Assembly;
use worker::comm::Collectives;
use worker::config::{self, Experiment};
use worker::device::RankDevice;
use worker::exit;
use worker::signals::StopRequest;
use worker::train::{
    RankFlags, Reducer, RunDigest, Skip, StepDigest, StepFigures, TrainState, digest_step, division,
    train_step,
};

use crate::on_ranks;

/// A rank in the middle of a run on star graphs.
pub(crate) struct Rank {
    config: Experiment,
    reducer: Reducer,
    state: TrainState,
}

pub(crate) fn config(settings: &[&str]) -> Experiment {
    let small = ["model=rotary_tiny", "global_batch_size=8", "per_device_batch_size=2", "optimizer.lr=1e-3"];
    let settings: Vec<String> = small.iter().chain(settings).map(ToString::to_string).collect();
    config::load("star_easy_ilm", &settings, None).expect("settings").experiment
}

/// This rank's batches of the first steps.
pub(crate) fn batches(
    config: &Experiment,
    assembly: &Assembly,
    comm: &dyn Collectives,
    steps: usize,
) -> Vec<StepBatch> {
    let dataset = assembly.open_split(config, Split::Train).expect("graphs");
    let limit = MicroBatchLimit { rows: 2, visible_tokens: None };
    let lanes = config.data.canonical_lanes;
    let stream = TrainStream {
        collator: assembly.collator(config).expect("a collator"),
        order: config.data.order(dataset.as_ref(), config.seed).expect("an order"),
        schedule: config.data.schedule(config.global_batch_size, dataset.len()).expect("steps"),
        plan: BatchPlan::new(limit, comm.rank(), comm.world_size(), lanes).expect("a plan"),
        dataset,
    };
    let pool = BatchPool::new(Arc::new(PlainMemory), 64);
    let options = LoaderOptions { threads: 1, prefetch_steps: 1, read_ahead_steps: 0, pool };
    let mut loader = TrainLoader::spawn(stream, 0, options).expect("threads");
    (0..steps).map(|_| loader.next().expect("a batch").expect("enough data")).collect()
}

impl Rank {
    pub(crate) fn new(config: &Experiment, assembly: &Assembly, comm: &mut dyn Collectives) -> Self {
        let device = RankDevice::processor();
        let model = assembly.build_model(config, device.device()).expect("a model");
        let division = division(&config.trainer, model.arena(), comm.rank(), comm.world_size());
        let mut state = TrainState::new(model, config, division).expect("a state");
        state.digest = Some(RunDigest::begin(0, 0));
        // SAFETY: dropped before the state; a step goes by the reducer's rules.
        let reducer = unsafe { Reducer::connect(&device, comm, &config.trainer, state.model.arena()) };
        Self { config: config.clone(), reducer: reducer.expect("a reducer"), state }
    }

    pub(crate) fn step(
        &mut self,
        comm: &mut dyn Collectives,
        batch: &StepBatch,
    ) -> anyhow::Result<(StepFigures, StepDigest)> {
        let Self { config, reducer, state } = self;
        let figures = train_step(state, config, comm, reducer, batch, RankFlags::default())?;
        let digest = digest_step(state, comm, reducer, config, batch, &figures)?;
        // Tests look at parameters as they like.
        reducer.complete_parameters()?;
        Ok((figures, digest))
    }

    /// Bits of parameters, moments and average, and how often the last was updated.
    fn bits(&self) -> (Vec<Vec<u32>>, u64) {
        let ema = self.state.ema.as_ref().expect("an average is kept");
        let moments = [&self.state.adamw.exp_avg, &self.state.adamw.exp_avg_sq, &ema.shadow];
        let buffers = [self.state.model.arena().flat_params()].into_iter().chain(moments);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        (buffers.map(|flat| bits(flat.host().expect("host memory"))).collect(), ema.num_updates)
    }
}

#[test]
fn a_rank_with_other_parameters_is_named() {
    on_ranks("proof::a_rank_with_other_parameters_is_named", &[2, 3], |comm| {
        let config = config(&["trainer.shard_optimizer=false", "trainer.checksum_every_n_steps=2"]);
        let assembly = Assembly::open(&config).expect("a tokenizer");
        let batches = batches(&config, &assembly, comm, 4);
        let mut rank = Rank::new(&config, &assembly, comm);
        for batch in &batches[..3] {
            let (_, digest) = rank.step(comm, batch).expect("equal ranks");
            assert_eq!(digest.parameters.is_some(), digest.step == 2);
        }
        if comm.rank() == 1 {
            rank.state.model.arena_mut().params_mut()[5] += 0.5;
        }
        let error = rank.step(comm, &batches[3]).expect_err("one rank differs");
        let sentence = format!("{error:#}");
        assert!(sentence.starts_with("after step 4: parameters differ between ranks: "), "{sentence}");
        let named = if comm.world_size() == 2 { "rank 0 has " } else { ", all 2 others have " };
        assert!(sentence.contains("rank 1 has ") && sentence.contains(named), "{sentence}");
        assert_eq!(exit::code_of(&error), exit::COMMUNICATION);
    });
}

#[test]
fn a_rank_with_other_rounded_parameters_is_named() {
    on_ranks("proof::a_rank_with_other_rounded_parameters_is_named", &[2, 3], |comm| {
        let config = config(&["trainer.precision=bf16", "trainer.checksum_every_n_steps=1"]);
        let assembly = Assembly::open(&config).expect("a tokenizer");
        let batches = batches(&config, &assembly, comm, 1);
        let mut rank = Rank::new(&config, &assembly, comm);
        let (figures, _) = rank.step(comm, &batches[0]).expect("equal ranks");
        let arena = rank.state.model.arena();
        if let (1, Some(rounded), Some(from)) = (comm.rank(), arena.flat_rounded(), arena.rounded_from()) {
            // SAFETY: nobody computes, and nothing is on its way.
            unsafe { rounded.address().add(from + 5).write(bf16::NAN) };
        }
        let Rank { config, reducer, state } = &mut rank;
        let error =
            digest_step(state, comm, reducer, config, &batches[0], &figures).expect_err("one differs");
        let sentence = format!("{error:#}");
        assert!(
            sentence.starts_with("after step 1: rounded parameters differ between ranks: "),
            "{sentence}"
        );
    });
}

#[test]
fn all_leave_a_step_that_one_rank_has_no_data_for_and_know_why() {
    on_ranks("proof::all_leave_a_step_that_one_rank_has_no_data_for_and_know_why", &[2, 3], |comm| {
        let config = config(&[]);
        let assembly = Assembly::open(&config).expect("a tokenizer");
        let batches = batches(&config, &assembly, comm, 1);
        let mut rank = Rank::new(&config, &assembly, comm);
        let before = rank.bits();
        // The error counts, though another rank is told to stop in the same step.
        let stop = StopRequest::default();
        if comm.rank() == 0 {
            stop.set();
        }
        let flags = RankFlags { failed: comm.rank() == 1, stop: Some(&stop), ..RankFlags::default() };
        let Rank { config, reducer, state } = &mut rank;
        let figures = train_step(state, config, comm, reducer, &batches[0], flags).expect("a step");
        assert!(figures.global.failed && figures.global.given_up);
        assert_eq!((rank.state.step, rank.state.position), (0, 0));
        assert!(rank.bits() == before, "a step that was given up changed something");
        // They can still make it.
        rank.step(comm, &batches[0]).expect("a step");
        assert!(rank.bits() != before, "and it does change something");
    });
}

#[test]
fn what_is_not_finite_on_one_rank_is_skipped_by_all() {
    on_ranks("proof::what_is_not_finite_on_one_rank_is_skipped_by_all", &[2, 3], |comm| {
        for sharded in ["true", "false"] {
            let config = config(&[&format!("trainer.shard_optimizer={sharded}"), "model.dropout=0.1"]);
            let assembly = Assembly::open(&config).expect("a tokenizer");
            let batches = batches(&config, &assembly, comm, 4);
            let mut rank = Rank::new(&config, &assembly, comm);
            rank.step(comm, &batches[0]).expect("a step");
            let before = rank.bits();
            let good = rank.state.model.arena().params().to_vec();
            if comm.rank() == 1 {
                rank.state.model.arena_mut().params_mut().fill(f32::NAN);
            }
            let (figures, digest) = rank.step(comm, &batches[1]).expect("a step that is skipped");
            assert_eq!((figures.skipped, digest.skipped), (Some(Skip::NotFinite), Some(Skip::NotFinite)));
            assert_eq!((rank.state.step, rank.state.position), (2, 16), "step and data go on");
            rank.state.model.arena_mut().params_mut().copy_from_slice(&good);
            assert!(rank.bits() == before, "a skipped step changed something");

            // From here on it is a run that has never seen the second batch.
            let mut other = Rank::new(&config, &assembly, comm);
            other.step(comm, &batches[0]).expect("a step");
            (other.state.step, other.state.position) = (2, 16);
            other.state.guard.left_out(Some(Skip::NotFinite), 8);
            for batch in &batches[2..] {
                let (mine, _) = rank.step(comm, batch).expect("a step");
                let (its, _) = other.step(comm, batch).expect("a step");
                assert_eq!((mine.skipped, mine.loss().to_bits()), (None, its.loss().to_bits()));
            }
            assert!(rank.bits() == other.bits(), "the steps after a skipped one differ");
            assert!(rank.bits() != before, "and they do change something");
        }
    });
}
