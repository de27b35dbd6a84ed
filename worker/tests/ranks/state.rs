//! The state of a run that is divided between ranks, in memory and in checkpoints.

use checkpoints::Store;
use ilm_model::{Model, ModelConfig, ModelShape, Precision, Recompute};
use worker::comm::{Collectives, Solo};
use worker::config::Experiment;
use worker::device::RankDevice;
use worker::train::{Reducer, RunFacts, TrainState, division, save};

use crate::on_ranks;

pub fn experiment(sharded: bool) -> Experiment {
    let mut experiment = Experiment::default();
    experiment.trainer.shard_optimizer = Some(sharded);
    experiment.trainer.reduce_bucket_mib = 1;
    experiment
}

/// Larger than two buckets.
/// What a checkpoint says beside the state, where nothing depends on it.
pub fn facts() -> RunFacts {
    RunFacts {
        micro_batch_tokens: None,
        seed: 1,
        num_embeddings: 1000,
        tokenizer: String::new(),
        config_hash: String::new(),
        dataset_fingerprint: String::new(),
        order: Default::default(),
    }
}

fn model() -> Model {
    model_with(Precision::Fp32)
}

fn model_with(precision: Precision) -> Model {
    let config = ModelConfig { d_model: 128, num_layers: 3, nhead: 2, ..ModelConfig::default() };
    let shape = ModelShape {
        config,
        num_embeddings: 1000,
        padding_idx: 0,
        max_length: 16,
        precision,
        recompute: Recompute::None,
    };
    Model::new(shape, 5).expect("a model")
}

fn state(comm: &dyn Collectives, sharded: bool) -> TrainState {
    state_with(comm, sharded, Precision::Fp32)
}

pub fn state_with(comm: &dyn Collectives, sharded: bool, precision: Precision) -> TrainState {
    let (model, experiment) = (model_with(precision), experiment(sharded));
    let division = division(&experiment.trainer, model.arena(), comm.rank(), comm.world_size());
    TrainState::new(model, &experiment, division).expect("a state")
}

/// The value that the tests keep at an element of a buffer.
fn value(element: usize, buffer: usize) -> f32 {
    (element * (2 * buffer + 3)) as f32
}

/// Gives every buffer values that tell the element.
pub fn mark(state: &mut TrainState) {
    let parts = state.adamw.parts().clone();
    let average = state.ema.as_mut().expect("an average is kept");
    average.num_updates = 3;
    let packed = [&mut state.adamw.exp_avg, &mut state.adamw.exp_avg_sq, &mut average.shadow];
    for (buffer, flat) in packed.into_iter().enumerate() {
        let values = flat.host_mut().expect("host memory");
        let places = parts.iter().flat_map(|part| part.arena.zip(part.packed));
        places.for_each(|(element, place)| values[place] = value(element, buffer));
    }
}

fn assert_marked(state: &TrainState) {
    let average = state.ema.as_ref().expect("an average is kept");
    assert_eq!(average.num_updates, 3);
    let packed = [&state.adamw.exp_avg, &state.adamw.exp_avg_sq, &average.shadow];
    for (buffer, flat) in packed.into_iter().enumerate() {
        let values = flat.host().expect("host memory");
        let mut places = state.adamw.parts().iter().flat_map(|part| part.arena.zip(part.packed));
        assert!(places.all(|(element, place)| values[place] == value(element, buffer)), "buffer {buffer}");
    }
}

#[test]
fn a_sharded_rank_keeps_its_share_of_moments_and_average() {
    on_ranks("state::a_sharded_rank_keeps_its_share_of_moments_and_average", &[2, 3], |comm| {
        let whole = model().arena().layout().len();
        let state = state(comm, true);
        let share = whole / comm.world_size();
        let kept =
            [&state.adamw.exp_avg, &state.adamw.exp_avg_sq, &state.ema.as_ref().expect("it is kept").shadow];
        for flat in kept {
            // The last bucket is not full, and not every size divides.
            assert!(
                flat.len() <= share + (1 << 14) && flat.len() + (1 << 14) >= share,
                "{} {share}",
                flat.len()
            );
        }
        assert_eq!(self::state(comm, false).adamw.exp_avg.len(), whole);
    });
}

#[test]
fn averaged_weights_are_gathered_for_an_evaluation_and_given_back() {
    on_ranks("state::averaged_weights_are_gathered_for_an_evaluation_and_given_back", &[2, 3], |comm| {
        for sharded in [true, false] {
            let mut state = state(comm, sharded);
            let trainer = experiment(sharded).trainer;
            // SAFETY: dropped before the state, and nothing is under way when the state is looked at.
            let reducer =
                unsafe { Reducer::connect(&RankDevice::processor(), comm, &trainer, state.model.arena()) };
            let mut reducer = reducer.expect("a reducer");
            mark(&mut state);
            let trained = state.model.arena().params().to_vec();
            let seen = state.with_averaged_weights(&mut reducer, |model| Ok(model.arena().params().to_vec()));
            let seen = seen.expect("weights that are exchanged");
            assert!(seen.iter().enumerate().all(|(element, &seen)| seen == value(element, 2)));
            assert_eq!(state.model.arena().params(), trained);
            assert_marked(&state);
        }
    });
}

#[test]
fn a_checkpoint_of_any_division_is_read_by_any_other() {
    on_ranks("state::a_checkpoint_of_any_division_is_read_by_any_other", &[2, 3], |comm| {
        let facts = facts();
        for sharded in [true, false] {
            let run_dir = std::env::temp_dir().join(format!(
                "ilm-ranks-{}-{sharded}",
                std::env::var("PMIX_NAMESPACE").expect("mpirun names the job")
            ));
            std::fs::create_dir_all(&run_dir).expect("a folder");
            comm.barrier("folder").expect("ranks that meet");
            let mut saved = state(comm, sharded);
            mark(&mut saved);
            saved.step = 4;
            let trained = saved.model.arena().params().to_vec();
            let mut store = Store::open(&run_dir).expect("a store");
            save(&mut store, comm, &experiment(sharded), &facts, &saved).expect("a checkpoint");

            let checkpoint = store.get(4).expect("the checkpoint");
            checkpoint.verify().expect("valid");
            let alone = state(&Solo, true);
            for mut other in [state(comm, true), state(comm, false), alone] {
                other.model.arena_mut().params_mut().fill(0.5);
                other.restore(&checkpoint).expect("it fits");
                assert_marked(&other);
                assert!(other.model.arena().params() == trained && other.step == 4);
            }
            comm.barrier("read").expect("ranks that meet");
            drop(store);
            if comm.rank() == 0 {
                std::fs::remove_dir_all(&run_dir).expect("an own folder");
            }
        }
    });
}
