//! What must hold for every batch: rows do not see each other, order does not matter, gradients add up, bad input is refused.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Packed, assert_close, floats, relative_error, small_shape};
use ilm_model::{
    Error, LossConfig, LossParts, Predictor, PredictorConfig, Prompt, SamplingMethod, StoppingModel,
};
use proptest::prelude::*;

fn model(dropout: f64) -> StoppingModel {
    StoppingModel::new(small_shape(dropout), 3).unwrap()
}

/// Losses and gradients of batches run one after the other, each gradient scaled by 1/8.
fn run(model: &mut StoppingModel, batches: &[&Packed], seed: Option<u64>) -> (Vec<LossParts>, Vec<f32>) {
    model.arena_mut().grads_mut().fill(0.0);
    let parts = batches
        .iter()
        .map(|packed| {
            model.forward_backward(&packed.batch(), &LossConfig::default(), 0.125, seed, &mut |_| {}).unwrap()
        })
        .collect();
    (parts, model.arena().grads().to_vec())
}

fn as_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_is_its_rows_one_by_one_in_any_order(
        lengths in prop::collection::vec(1i64..30, 1..9),
        rotation in 0usize..8,
    ) {
        let packed = Packed::synthetic(&lengths, 19);
        let rows: Vec<usize> = (0..lengths.len()).collect();
        let mut model = model(0.0);
        let (whole, grads) = run(&mut model, &[&packed], None);
        let whole = &whole[0];

        let singles: Vec<Packed> = rows.iter().map(|&row| packed.rows(&[row])).collect();
        let (parts, sum) = run(&mut model, &singles.iter().collect::<Vec<_>>(), None);
        prop_assert!(relative_error(&sum, &grads) < 1e-5);
        for (row, part) in parts.iter().enumerate() {
            assert_close("ce", &as_f32(&part.ce), &as_f32(&whole.ce[row..=row]), 1e-5, 1e-5);
            assert_close("length", &as_f32(&part.length), &as_f32(&whole.length[row..=row]), 1e-5, 1e-5);
            prop_assert_eq!(part.n_drops[0], whole.n_drops[row]);
        }

        let mut order = rows.clone();
        order.rotate_left(rotation % lengths.len());
        order.reverse();
        let permuted = packed.rows(&order);
        let (parts, sum) = run(&mut model, &[&permuted], None);
        prop_assert!(relative_error(&sum, &grads) < 1e-5);
        let expected: Vec<f64> = order.iter().map(|&row| whole.ce[row]).collect();
        assert_close("permuted ce", &as_f32(&parts[0].ce), &as_f32(&expected), 1e-5, 1e-5);
        let expected: Vec<i64> = order.iter().map(|&row| whole.n_drops[row]).collect();
        prop_assert_eq!(&parts[0].n_drops, &expected);

        let (tokens, classes) = model.logits(&permuted.batch()).unwrap();
        let (tokens, classes) = (floats(&tokens), floats(&classes));
        let mut token = 0;
        for (place, &row) in order.iter().enumerate() {
            let (alone, class) = model.logits(&singles[row].batch()).unwrap();
            let alone = floats(&alone);
            assert_close("logits", &tokens[token..token + alone.len()], &alone, 1e-5, 1e-5);
            assert_close("classes", &classes[2 * place..2 * place + 2], &floats(&class), 1e-5, 1e-5);
            token += alone.len();
        }
    }

    #[test]
    fn arbitrary_arrays_are_refused_or_computed(
        row_ptr in prop::collection::vec(-1i64..8, 0..5),
        tokens in prop::collection::vec(-1i64..20, 0..8),
        positions in prop::collection::vec(-1i64..70, 0..8),
        cls in prop::collection::vec(-1i64..4, 0..4),
        tgt_ptr in prop::collection::vec(0i64..3, 0..9),
        tgt_ids in prop::collection::vec(-1i64..20, 0..3),
        tgt_counts in prop::collection::vec(-1i64..3, 0..3),
    ) {
        let packed = Packed { row_ptr, tokens, positions, cls, tgt_ptr, tgt_ids, tgt_counts, source: vec![] };
        let mut model = model(0.1);
        // any outcome but a panic is fine; random arrays are hardly ever a batch
        let _ = model.forward_backward(&packed.batch(), &LossConfig::default(), 1.0, Some(1), &mut |_| {});
        let _ = model.loss(&packed.batch(), &LossConfig::default());
        let _ = model.logits(&packed.batch());
    }
}

#[test]
fn two_micro_batches_accumulate_the_gradient_of_both() {
    let packed = Packed::synthetic(&[4, 7, 7, 12, 3, 20], 19);
    let (first, second) = (packed.rows(&[0, 1, 2]), packed.rows(&[3, 4, 5]));
    let mut model = model(0.1);
    let (_, together) = run(&mut model, &[&packed], None);
    let (_, apart) = run(&mut model, &[&first, &second], None);
    assert!(relative_error(&apart, &together) < 1e-5);
    assert!(together.iter().any(|&grad| grad != 0.0));
}

#[test]
fn dropout_repeats_by_seed_and_leaves_the_padding_row_alone() {
    let mut packed = Packed::synthetic(&[6, 6, 9, 15], 19);
    packed.tokens[3] = 0;
    let mut model = model(0.2);
    let (first, grads) = run(&mut model, &[&packed], Some(5));
    let (again, same) = run(&mut model, &[&packed], Some(5));
    assert_eq!((&first, &grads), (&again, &same));
    let (other, _) = run(&mut model, &[&packed], Some(6));
    assert_ne!(first[0].ce, other[0].ce);
    let (without, _) = run(&mut model, &[&packed], None);
    assert_ne!(first[0].ce, without[0].ce);
    let width = small_shape(0.2).config.d_model as usize;
    assert!(grads[..width].iter().all(|&grad| grad == 0.0), "the padding row is not trained");
}

#[test]
fn explicit_and_fused_attention_agree() {
    // too small a probability to drop anything: only the way of computing changes
    let packed = Packed::synthetic(&[3, 8, 9, 9, 30], 19);
    let mut model = model(1e-6);
    let (fused, fused_grads) = run(&mut model, &[&packed], None);
    let (explicit, explicit_grads) = run(&mut model, &[&packed], Some(1));
    assert_close("ce", &as_f32(&explicit[0].ce), &as_f32(&fused[0].ce), 1e-4, 1e-5);
    assert!(relative_error(&explicit_grads, &fused_grads) < 5e-5);
}

#[test]
fn dropout_gradient_is_that_of_the_sampled_loss() {
    let packed = Packed::synthetic(&[5, 8, 8, 11], 19);
    let mut model = model(0.3);
    let (_, grads) = run(&mut model, &[&packed], Some(9));
    // along the gradient, the loss with the same masks must rise by its squared norm
    let norm: f64 = grads.iter().map(|&grad| f64::from(grad).powi(2)).sum();
    let step = 1e-3 / norm.sqrt();
    let mut loss_at = |sign: f64| {
        for (value, grad) in model.arena_mut().params_mut().iter_mut().zip(&grads) {
            *value += (sign * step * f64::from(*grad)) as f32;
        }
        run(&mut model, &[&packed], Some(9)).0[0].loss_sum() * 0.125
    };
    let (high, low) = (loss_at(1.0), loss_at(-2.0));
    let slope = (high - low) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 1e-2, "slope {slope}, squared norm {norm}");
}

#[test]
fn ranges_are_ready_in_order_and_final() {
    let packed = Packed::synthetic(&[5, 8, 13], 19);
    let mut model = model(0.1);
    let stages = model.arena().layout().stages();
    let start = model.arena().grads().as_ptr() as usize;
    let mut seen = Vec::new();
    model
        .forward_backward(&packed.batch(), &LossConfig::default(), 1.0, Some(2), &mut |range| {
            // SAFETY: libtorch's buffer outlives the call, and the model does not write while it calls back
            let grads =
                unsafe { std::slice::from_raw_parts((start as *const f32).add(range.start), range.len()) };
            seen.push((range, grads.to_vec()));
        })
        .unwrap();
    assert_eq!(seen.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(), stages);
    for (range, grads) in seen {
        assert_eq!(grads, model.arena().grads()[range]);
        assert!(grads.iter().any(|&grad| grad != 0.0));
    }
}

#[test]
fn empty_batches_and_rows_without_drops_are_fine() {
    let mut model = model(0.1);
    let empty = Packed { row_ptr: vec![0], tgt_ptr: vec![0], ..Packed::default() };
    let mut ranges = 0;
    let parts = model
        .forward_backward(&empty.batch(), &LossConfig::default(), 1.0, Some(1), &mut |_| ranges += 1)
        .unwrap();
    assert_eq!((parts.examples(), ranges), (0, model.arena().layout().stages().len()));
    assert_eq!(model.loss(&empty.batch(), &LossConfig::default()).unwrap().examples(), 0);
    assert_eq!(model.logits(&empty.batch()).unwrap().0.size(), [0, 19]);
    let single = Packed::synthetic(&[1], 19);
    let (parts, _) = run(&mut model, &[&single], Some(1));
    assert_eq!((parts[0].ce[0], parts[0].n_drops[0]), (0.0, 0));
}

#[test]
fn a_target_behind_cls_and_settings_out_of_range_are_refused() {
    let model = model(0.1);
    let mut packed = Packed::synthetic(&[4], 19);
    packed.cls[0] = 1;
    let error = model.loss(&packed.batch(), &LossConfig::default()).unwrap_err();
    assert!(matches!(error, Error::Batch { .. }) && error.to_string().contains("CLS"), "{error}");
    let config = LossConfig { length_loss_weight: 1.5, ..LossConfig::default() };
    let error = model.loss(&Packed::synthetic(&[4], 19).batch(), &config).unwrap_err();
    assert!(error.is_config());
    assert_eq!(error.to_string(), "loss.length_loss_weight = 1.5 must lie in [0, 1]");

    let mut shape = small_shape(0.1);
    shape.config.rotary_emb_dim = 10;
    let error = StoppingModel::new(shape, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "model.rotary_emb_dim = 10 is above the head width 8 (d_model 24 / nhead 3); use at most 8"
    );
}

#[test]
fn initial_values_depend_on_seed_and_name_only() {
    let values = |seed, identical| {
        let mut shape = small_shape(0.1);
        shape.config.identical_layers = identical;
        StoppingModel::new(shape, seed).unwrap()
    };
    let (a, b, c) = (values(1, false), values(1, false), values(2, false));
    assert_eq!(a.arena().params(), b.arena().params());
    assert_ne!(a.arena().params(), c.arena().params());
    let layer = |model: &StoppingModel, i: usize| {
        let range = model.arena().layout().entry(&format!("encoder.{i}.mlp.0.weight")).unwrap().range();
        model.arena().params()[range].to_vec()
    };
    assert_ne!(layer(&a, 0), layer(&a, 1));
    let same = values(1, true);
    assert_eq!(layer(&same, 0), layer(&same, 1));
    assert_eq!(layer(&same, 0), layer(&a, 0));
}

fn prompts() -> Vec<Prompt> {
    (0..7u64)
        .map(|id| {
            let len = 2 + (id as usize * 3) % 5;
            let mut tokens: Vec<i64> =
                (0..len as i64).map(|place| 6 + (place * 5 + id as i64) % 12).collect();
            let mut token_types = vec![1; len];
            (tokens[0], token_types[0]) = (1, 0);
            (tokens[len - 1], token_types[len - 1]) = (4, 2);
            Prompt { id, tokens, token_types, ..Prompt::default() }
        })
        .collect()
}

#[test]
fn predictions_do_not_depend_on_how_rows_are_batched() {
    let model = model(0.1);
    for (method, second) in [
        (SamplingMethod::Sample, None),
        (SamplingMethod::SampleTopK, Some(SamplingMethod::SampleTopP)),
        (SamplingMethod::SampleTopP, Some(SamplingMethod::SampleTopK)),
    ] {
        let config = PredictorConfig {
            max_steps: 12,
            stopping_threshold: 1.0,
            sampling_method: method,
            top: 5,
            second_sampling_method: second,
            second_top: 2,
            ..PredictorConfig::default()
        };
        let predictor = Predictor::new(config, &[0, 1, 2, 3, 4], model.shape()).unwrap();
        let prompts = prompts();
        let whole = predictor.predict(&model, &prompts, 17).unwrap();
        let split: Vec<_> =
            prompts.chunks(2).flat_map(|part| predictor.predict(&model, part, 17).unwrap()).collect();
        assert_eq!(whole, split);
        assert!(whole.iter().all(|row| row.insertions.len() == 12 && row.tokens.iter().all(|&id| id < 19)));
        assert!(whole.iter().flat_map(|row| &row.insertions).all(|step| step.token > 4 && step.index > 0));
        assert_ne!(whole, predictor.predict(&model, &prompts, 18).unwrap());
    }
}

#[test]
fn a_protected_prompt_stays_together_and_limits_hold() {
    let model = model(0.1);
    let config = PredictorConfig {
        max_steps: 40,
        max_length: Some(11),
        stopping_threshold: 1.0,
        protect_prompt: true,
        ..PredictorConfig::default()
    };
    let predictor = Predictor::new(config.clone(), &[0, 1, 2, 3, 4], model.shape()).unwrap();
    let prompts = prompts();
    for (row, prompt) in predictor.predict(&model, &prompts, 1).unwrap().iter().zip(&prompts) {
        assert_eq!(row.tokens.len(), 11);
        assert_eq!(row.tokens[..prompt.tokens.len()], prompt.tokens);
    }
    let closed = Prompt { closed: Some(vec![true; prompts[0].tokens.len()]), ..prompts[0].clone() };
    assert!(predictor.predict(&model, &[closed], 1).unwrap()[0].insertions.is_empty());
    let all: Vec<i64> = (0..19).collect();
    let mute = Predictor::new(config.clone(), &all, model.shape()).unwrap();
    assert!(mute.predict(&model, &prompts, 1).unwrap().iter().all(|row| row.insertions.is_empty()));

    let long = PredictorConfig { max_length: Some(66), ..config };
    assert!(Predictor::new(long, &[], model.shape()).unwrap_err().is_config());
    let headless = Prompt { tokens: vec![5], token_types: vec![1], ..Prompt::default() };
    assert!(matches!(predictor.predict(&model, &[headless], 1), Err(Error::Prompt { .. })));
}
