//! What must hold for every batch: rows do not see each other, order does not matter, gradients add up, bad input is refused.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::ops::Range;

use common::{Packed, assert_close, floats, relative_error, small_shape, small_shape_of};
use half::bf16;
use ilm_model::{
    AttentionMask, DenseBatch, Error, Flat, HeadKind, LengthLoss, LossConfig, LossParts, Model, ModelClass,
    ModelShape, Precision, Traffic,
};
use proptest::prelude::*;

fn model(dropout: f64) -> Model {
    Model::new(small_shape(dropout), 3).unwrap()
}

/// The loss that trains whatever head the class has.
fn loss_of(class: ModelClass) -> LossConfig {
    let length_loss = match class.head() {
        HeadKind::None => LengthLoss::None,
        HeadKind::Stopping => LengthLoss::BinaryCe,
        HeadKind::Classification | HeadKind::Length => LengthLoss::Ce,
    };
    LossConfig { length_loss, ..LossConfig::default() }
}

/// Losses and gradients of batches run one after the other, each gradient scaled by 1/8.
fn run(model: &mut Model, batches: &[&Packed], seed: Option<u64>) -> (Vec<LossParts>, Vec<f32>) {
    let loss = loss_of(model.shape().config.class);
    for entry in model.arena().layout().clone().entries() {
        model.arena_mut().grads_mut()[entry.range()].fill(f32::NAN); // what is cleared must not be read
    }
    model.clear_grads();
    let parts = batches
        .iter()
        .map(|packed| {
            model.forward_backward(&packed.batch(), &loss, 0.125, seed, &mut |_: Range<usize>| {}).unwrap()
        })
        .collect();
    (parts, model.arena().grads().to_vec())
}

fn as_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// The classes' logits, [] without a head.
fn class_floats(logits: Option<tch::Tensor>) -> Vec<f32> {
    logits.map(|logits| floats(&logits)).unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_is_its_rows_one_by_one_in_any_order(
        class in prop::sample::select(ModelClass::ALL.to_vec()),
        lengths in prop::collection::vec(1i64..30, 1..9),
        rotation in 0usize..8,
    ) {
        let packed = Packed::synthetic(&lengths, 19);
        let rows: Vec<usize> = (0..lengths.len()).collect();
        let mut model = Model::new(small_shape_of(class, 0.0), 3).unwrap();
        let (whole, grads) = run(&mut model, &[&packed], None);
        let whole = &whole[0];

        let singles: Vec<Packed> = rows.iter().map(|&row| packed.rows(&[row])).collect();
        let (parts, sum) = run(&mut model, &singles.iter().collect::<Vec<_>>(), None);
        prop_assert!(relative_error(&sum, &grads) < 1e-5);
        for (row, part) in parts.iter().enumerate() {
            assert_close("ce", &as_f32(&part.ce), &as_f32(&whole.ce[row..=row]), 1e-6, 1e-5);
            assert_close("length", &as_f32(&part.length), &as_f32(&whole.length[row..=row]), 1e-6, 1e-5);
            assert_close("classes", &part.class_logits[0], &whole.class_logits[row], 1e-6, 1e-5);
            prop_assert_eq!(part.n_drops[0], whole.n_drops[row]);
        }

        let mut order = rows.clone();
        order.rotate_left(rotation % lengths.len());
        order.reverse();
        let permuted = packed.rows(&order);
        let (parts, sum) = run(&mut model, &[&permuted], None);
        prop_assert!(relative_error(&sum, &grads) < 1e-5);
        let expected: Vec<f64> = order.iter().map(|&row| whole.ce[row]).collect();
        assert_close("permuted ce", &as_f32(&parts[0].ce), &as_f32(&expected), 1e-6, 1e-5);
        let expected: Vec<i64> = order.iter().map(|&row| whole.n_drops[row]).collect();
        prop_assert_eq!(&parts[0].n_drops, &expected);

        let (tokens, classes) = model.logits(&permuted.batch()).unwrap();
        let (tokens, classes) = (floats(&tokens), class_floats(classes));
        let count = classes.len() / lengths.len();
        prop_assert_eq!(count as i64, model.shape().num_classes().unwrap_or(0));
        let mut token = 0;
        for (place, &row) in order.iter().enumerate() {
            let (alone, class) = model.logits(&singles[row].batch()).unwrap();
            let alone = floats(&alone);
            assert_close("logits", &tokens[token..token + alone.len()], &alone, 1e-6, 1e-5);
            assert_close("classes", &classes[count * place..][..count], &class_floats(class), 1e-6, 1e-5);
            token += alone.len();
        }
    }

    #[test]
    fn padding_on_either_side_does_not_change_a_row(
        class in prop::sample::select(ModelClass::ALL.to_vec()),
        lengths in prop::collection::vec(1usize..20, 1..6),
        extra in 0usize..9,
        left in any::<bool>(),
    ) {
        let model = Model::new(small_shape_of(class, 0.0), 3).unwrap();
        let lengths_i64: Vec<i64> = lengths.iter().map(|&length| length as i64).collect();
        let packed = Packed::synthetic(&lengths_i64, 19);
        let width = lengths.iter().max().unwrap() + extra;
        let (mut tokens, mut positions) = (vec![0; lengths.len() * width], vec![0; lengths.len() * width]);
        let mut sees = vec![false; tokens.len()];
        let place_of = |row: usize, place: usize| {
            row * width + place + if left { width - lengths[row] } else { 0 }
        };
        let mut cls = Vec::new();
        for (row, &length) in lengths.iter().enumerate() {
            cls.push((place_of(row, 0) - row * width) as i64);
            for place in 0..length {
                let (at, from) = (place_of(row, place), packed.row_ptr[row] as usize + place);
                (tokens[at], positions[at], sees[at]) = (packed.tokens[from], place as i64, true);
            }
        }
        let batch = DenseBatch {
            rows: lengths.len(),
            width,
            tokens: &tokens,
            positions: Some(&positions),
            mask: AttentionMask::Keys(&sees),
            cls: Some(&cls),
        };
        let dense = model.dense(&batch).unwrap();
        let (expected, classes) = model.logits(&packed.batch()).unwrap();
        let (found, expected) = (floats(&dense.token_logits), floats(&expected));
        let mut from = 0;
        for (row, &length) in lengths.iter().enumerate() {
            let at = place_of(row, 0) * 19;
            assert_close("logits", &found[at..at + length * 19], &expected[from..from + length * 19], 1e-6, 1e-5);
            from += length * 19;
        }
        assert_close("classes", &class_floats(dense.class_logits), &class_floats(classes), 1e-6, 1e-5);
        // the same as a mask of pairs
        let pairs: Vec<bool> = sees.chunks(width).flat_map(|row| row.repeat(width)).collect();
        let same = model.dense(&DenseBatch { mask: AttentionMask::Pairs(&pairs), ..batch }).unwrap();
        assert_close("pairs", &floats(&same.token_logits), &found, 1e-6, 1e-5);
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
        let _ = model.forward_backward(&packed.batch(), &LossConfig::default(), 1.0, Some(1), &mut |_: Range<usize>| {});
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
fn what_pads_the_output_matrix_is_never_trained() {
    let packed = Packed::synthetic(&[4, 7, 12], 19);
    for precision in [Precision::Fp32, Precision::Bf16] {
        let mut model = Model::new(ModelShape { precision, ..small_shape(0.1) }, 3).unwrap();
        let layout = model.arena().layout().clone();
        let padding = layout.entry("output_layer.linear.weight").unwrap().range().end..layout.len();
        assert_eq!(padding.len() as i64, (64 - 19) * small_shape(0.1).config.d_model);
        model.arena_mut().grads_mut()[padding.clone()].fill(f32::NAN);
        let (_, grads) = run(&mut model, &[&packed, &packed], Some(5));
        assert!(grads[padding.clone()].iter().all(|&grad| grad == 0.0), "{precision:?}");
        assert!(model.arena().params()[padding].iter().all(|&value| value == 0.0), "{precision:?}");
    }
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
    for class in [ModelClass::RotaryStopping, ModelClass::Gpt2Length, ModelClass::Gpt2Ilm] {
        check_dropout_gradient(Model::new(small_shape_of(class, 0.3), 3).unwrap());
    }
}

fn check_dropout_gradient(mut model: Model) {
    let packed = Packed::synthetic(&[5, 8, 8, 11], 19);
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
        .forward_backward(&packed.batch(), &LossConfig::default(), 1.0, Some(2), &mut |range: Range<
            usize,
        >| {
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

/// Brings the parameters of a range when they are waited for: those that products take rounded only so.
struct Arriving<'a> {
    parameters: &'a [f32],
    /// The model's own.
    target: *mut f32,
    rounded: Option<(usize, *mut bf16)>,
    seen: Vec<Range<usize>>,
}

impl Traffic for Arriving<'_> {
    fn needs(&mut self, range: Range<usize>) {
        for index in range.clone() {
            let value = self.parameters[index];
            // SAFETY: libtorch's buffers outlive the call, and the model does not read while it calls back
            unsafe {
                match self.rounded {
                    Some((from, rounded)) if index >= from => rounded.add(index).write(bf16::from_f32(value)),
                    _ => self.target.add(index).write(value),
                }
            }
        }
        self.seen.push(range);
    }

    fn is_final(&mut self, _range: Range<usize>) {}
}

#[test]
fn no_parameter_is_used_before_it_was_waited_for() {
    let packed = Packed::synthetic(&[5, 8, 13], 19);
    for (class, precision) in
        ModelClass::ALL.into_iter().flat_map(|class| [(class, Precision::Fp32), (class, Precision::Bf16)])
    {
        let mut model = Model::new(ModelShape { precision, ..small_shape_of(class, 0.1) }, 3).unwrap();
        let (expected, grads) = run(&mut model, &[&packed], Some(2));
        let parameters = model.arena().params().to_vec();
        model.arena_mut().params_mut().fill(f32::NAN);
        let _ = model.logits(&packed.batch()).unwrap(); // rounds them
        let arena = model.arena();
        let rounded = arena.rounded_from().zip(arena.flat_rounded().map(Flat::address));
        assert_eq!(rounded.is_some(), precision == Precision::Bf16);
        let target = arena.flat_params().address();
        let mut traffic = Arriving { parameters: &parameters, target, rounded, seen: Vec::new() };
        model.clear_grads();
        let found = model.forward_backward(&packed.batch(), &loss_of(class), 0.125, Some(2), &mut traffic);
        assert_eq!(found.unwrap(), expected[0], "{class:?} {precision:?}");
        assert_eq!(model.arena().grads(), grads, "{class:?} {precision:?}");
        let stages: Vec<_> = model.arena().layout().stages().into_iter().rev().collect();
        assert_eq!(traffic.seen, stages);
    }
}

#[test]
fn empty_batches_and_rows_without_drops_are_fine() {
    let mut model = model(0.1);
    let empty = Packed { row_ptr: vec![0], tgt_ptr: vec![0], ..Packed::default() };
    let mut ranges = 0;
    let parts = model
        .forward_backward(&empty.batch(), &LossConfig::default(), 1.0, Some(1), &mut |_: Range<usize>| {
            ranges += 1
        })
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
    shape.config.rotary_emb_dim = Some(10);
    let error = Model::new(shape, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "model.rotary_emb_dim = 10 is above the head width 8 (d_model 24 / nhead 3); use at most 8"
    );
}

#[test]
fn losses_and_heads_that_do_not_fit_are_refused_in_one_sentence() {
    let packed = Packed::synthetic(&[4, 40], 19);
    let refusal = |class: ModelClass, length_loss| {
        let model = Model::new(small_shape_of(class, 0.0), 3).unwrap();
        let loss = LossConfig { length_loss, ..LossConfig::default() };
        model.loss(&packed.batch(), &loss).unwrap_err()
    };
    let cases = [
        (ModelClass::RotaryIlm, LengthLoss::BinaryCe, "model.class = \"rotary_ilm\" has none"),
        (ModelClass::Gpt2Length, LengthLoss::BinaryCe, "which model.class = \"gpt2_length\" has not"),
        (ModelClass::RotaryStopping, LengthLoss::Ce, "use loss.length_loss=binary_ce"),
    ];
    for (class, length_loss, sentence) in cases {
        let error = refusal(class, length_loss);
        assert!(error.is_config() && error.to_string().contains(sentence), "{error}");
    }

    let mut shape = small_shape_of(ModelClass::RotaryLength, 0.0);
    shape.config.num_classes = Some(3);
    let model = Model::new(shape, 3).unwrap();
    let error = model.loss(&packed.batch(), &loss_of(ModelClass::RotaryLength)).unwrap_err();
    assert!(
        matches!(error, Error::Batch { .. }) && error.to_string().contains("counts only to 2"),
        "{error}"
    );
}

#[test]
fn settings_that_contradict_the_class_are_refused() {
    let refusal = |class: ModelClass, change: &dyn Fn(&mut ilm_model::ModelConfig)| {
        let mut shape = small_shape_of(class, 0.0);
        change(&mut shape.config);
        Model::new(shape, 0).unwrap_err().to_string()
    };
    let gpt2 = ModelClass::Gpt2Stopping;
    assert!(refusal(gpt2, &|config| config.rotary_emb_dim = Some(4)).contains("rotary_emb_dim"));
    assert!(refusal(gpt2, &|config| config.identical_layers = true).contains("identical_layers"));
    assert!(refusal(gpt2, &|config| config.layer_norm_eps = 1e-3).contains("layer_norm_eps"));
    assert!(refusal(gpt2, &|config| config.num_classes = Some(3)).contains("has 2 classes"));
    assert!(refusal(ModelClass::Gpt2Base, &|config| config.num_classes = Some(3)).contains("has no head"));
    let open = ModelClass::RotaryClassification;
    assert!(refusal(open, &|config| config.num_classes = None).contains("needs model.num_classes"));
}

#[test]
fn malformed_padded_batches_are_refused() {
    let model = model(0.0);
    let (tokens, sees) = ([1i64, 5, 6, 1, 7, 8], [true; 6]);
    let good = DenseBatch {
        rows: 2,
        width: 3,
        tokens: &tokens,
        positions: None,
        mask: AttentionMask::Keys(&sees),
        cls: None,
    };
    model.dense(&good).unwrap();
    let blind = [true, true, true, false, false, false];
    let bad = [
        DenseBatch { width: 2, ..good },
        DenseBatch { rows: 0, ..good },
        DenseBatch { tokens: &[1, 5, 6, 1, 7, 19], ..good },
        DenseBatch { positions: Some(&[0, 1, 2, 0, 1, 65]), ..good },
        DenseBatch { positions: Some(&[0, 1, 2, 0, 1, -1]), ..good },
        DenseBatch { mask: AttentionMask::Pairs(&sees), ..good },
        DenseBatch { mask: AttentionMask::Keys(&blind), ..good },
        DenseBatch { cls: Some(&[0, 3]), ..good },
        DenseBatch { cls: Some(&[0]), ..good },
    ];
    for batch in bad {
        assert!(matches!(model.dense(&batch), Err(Error::Batch { .. })), "{batch:?}");
    }
}

#[test]
fn initial_values_depend_on_seed_and_name_only() {
    let values = |seed, identical| {
        let mut shape = small_shape(0.1);
        shape.config.identical_layers = identical;
        Model::new(shape, seed).unwrap()
    };
    let (a, b, c) = (values(1, false), values(1, false), values(2, false));
    assert_eq!(a.arena().params(), b.arena().params());
    assert_ne!(a.arena().params(), c.arena().params());
    let layer = |model: &Model, i: usize| {
        let range = model.arena().layout().entry(&format!("encoder.{i}.mlp.0.weight")).unwrap().range();
        model.arena().params()[range].to_vec()
    };
    assert_ne!(layer(&a, 0), layer(&a, 1));
    let same = values(1, true);
    assert_eq!(layer(&same, 0), layer(&same, 1));
    assert_eq!(layer(&same, 0), layer(&a, 0));
}
