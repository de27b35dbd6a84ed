//! Three optimizer steps of the reference: loss, gradient norm, rate, parameters, moments and moving average.

#[path = "../../model/tests/common/mod.rs"]
mod common;

use common::{Golden, Packed, assert_close, load_model, manifest, shape_of};
use data_pipeline::{BatchArrays, PackedBatch, SampleKey, StepBatch};
use ilm_model::Flat;
use serde_json::Value;
use worker::comm::Solo;
use worker::config::{Experiment, LrSchedulerConfig, Schedule};
use worker::device::RankDevice;
use worker::train::{Division, Reducer, TrainState, train_step};

const MODEL: &str = "model_rotary_stopping.safetensors";

fn experiment(config: &Value) -> Experiment {
    let number = |section: &str, key: &str| config[section][key].as_f64().expect("a number");
    let mut experiment = Experiment::default();
    experiment.model.dropout = config["dropout"].as_f64().expect("a number");
    experiment.optimizer.lr = number("optimizer", "lr");
    experiment.optimizer.weight_decay = number("optimizer", "weight_decay");
    experiment.optimizer.eps = number("optimizer", "eps");
    experiment.trainer.gradient_clip_val = config["clip_grad_norm"].as_f64().expect("a number");
    experiment.trainer.max_steps = number("schedule", "num_training_steps") as u64;
    experiment.lr_scheduler = LrSchedulerConfig {
        name: match config["schedule"]["name"].as_str() {
            Some("constant") => Schedule::Constant,
            Some("constant_with_warmup") => Schedule::ConstantWithWarmup,
            other => panic!("unexpected schedule {other:?}"),
        },
        num_warmup_steps: config["schedule"]["num_warmup_steps"].as_u64(),
        ..LrSchedulerConfig::default()
    };
    experiment
}

fn step_batch(name: &str) -> StepBatch {
    let file = match name {
        "default" => "loss_binary_plain.safetensors",
        _ => "loss_binary_weighted_seq2seq.safetensors",
    };
    let golden = Golden::open(file);
    let ids = golden.get("batch.input_ids");
    let packed = Packed::from_padded(
        ids.shape[1],
        &ids.ints,
        golden.ints("batch.attention_mask"),
        None,
        golden.ints("batch.cls_position"),
        golden.ints("batch.target_ids.dense"),
    );
    let samples = (0..packed.cls.len() as u64).map(|row| SampleKey { position: row, epoch: 0, row });
    let arrays: BatchArrays<&[i64]> = BatchArrays {
        row_ptr: &packed.row_ptr,
        tokens: &packed.tokens,
        positions: &packed.positions,
        token_types: &vec![2; packed.tokens.len()],
        cls: &packed.cls,
        tgt_ptr: &packed.tgt_ptr,
        tgt_ids: &packed.tgt_ids,
        tgt_counts: &packed.tgt_counts,
    };
    let batch = PackedBatch::from_arrays(samples.collect(), arrays).expect("the arrays fit");
    StepBatch { position: 0, next_position: 1, micro_batches: vec![batch], skipped: 0 }
}

/// Compares a flat buffer with the reference's tensors under `prefix`; says how many there were.
fn compare(state: &TrainState, buffer: &Flat<f32>, golden: &Golden, prefix: &str) -> usize {
    let layout = state.model.arena().layout();
    let buffer = buffer.host().expect("host memory");
    let parameters = golden.under(prefix).filter(|(name, _)| !name.contains("rotary_emb"));
    parameters
        .map(|(name, expected)| {
            let range = layout.entry(name).expect("the model has every parameter of the reference").range();
            assert_close(&format!("{prefix}{name}"), &buffer[range], &expected.floats, 1e-5, 1e-5);
        })
        .count()
}

fn check(file: &str) {
    let golden = Golden::open(file);
    let config = manifest(file);
    let experiment = experiment(&config);
    let model = manifest(MODEL);
    let mut shape = shape_of(model["class_name"].as_str().expect("a name"), &model["kwargs"]);
    shape.config.dropout = experiment.model.dropout;
    let model = load_model(shape, &Golden::open(MODEL));
    let division = Division::replicated(model.arena().layout().len(), 0, 1);
    let mut state = TrainState::new(model, &experiment, division).expect("a state");
    // SAFETY: dropped before the state, which only steps change.
    let reducer = unsafe {
        Reducer::connect(&RankDevice::processor(), &mut Solo, &experiment.trainer, state.model.arena())
    };
    let mut reducer = reducer.expect("a reducer");

    let steps = config["per_step"].as_array().expect("a list").clone();
    let mut compared = 0;
    for expected in &steps {
        let batch = step_batch(expected["batch"].as_str().expect("a name"));
        let figures =
            train_step(&mut state, &experiment, &mut Solo, &mut reducer, &batch, Default::default())
                .expect("a step");
        let loss = figures.global.token_ce + figures.global.stop_loss;
        let number = |key: &str| expected[key].as_f64().expect("a number");
        assert!((loss - number("loss")).abs() < 1e-5 * number("loss"), "loss {loss}");
        let norm = number("grad_norm_before_clip");
        assert!((figures.grad_norm - norm).abs() < 1e-5 * norm, "norm {} {norm}", figures.grad_norm);
        assert!((figures.lr - number("lr_used")).abs() < 1e-12, "lr {}", figures.lr);
        let ema = state.ema.as_ref().expect("an average is kept");
        assert_eq!(Some(ema.num_updates), expected["ema_num_updates"].as_u64());
        let step = state.step;
        compared +=
            compare(&state, state.model.arena().flat_params(), &golden, &format!("step{step}.param."));
        compared += compare(&state, &ema.shadow, &golden, &format!("ema{step}.param."));
        compared += compare(&state, &state.adamw.exp_avg, &golden, &format!("adam{step}.exp_avg."));
        compared += compare(&state, &state.adamw.exp_avg_sq, &golden, &format!("adam{step}.exp_avg_sq."));
    }
    let parameters = state.model.arena().layout().entries().len();
    assert!(compared >= 4 * parameters, "only {compared} tensors were compared");
}

#[test]
fn golden_three_steps() {
    check("optim_reference.safetensors");
}

#[test]
fn golden_three_steps_under_stress() {
    check("optim_stress.safetensors");
}
