//! What saves memory or time changes no result: recomputation, the head's budget, products in bf16.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::ops::Range;

use common::{Packed, assert_close, relative_error, small_shape, small_shape_of};
use ilm_model::{LengthLoss, LossConfig, LossParts, Model, ModelClass, ModelShape, Precision, Recompute};

/// Losses and gradients of one batch.
fn run(shape: ModelShape, packed: &Packed, loss: &LossConfig, seed: Option<u64>) -> (LossParts, Vec<f32>) {
    let mut model = Model::new(shape, 3).unwrap();
    let parts =
        model.forward_backward(&packed.batch(), loss, 0.125, seed, &mut |_: Range<usize>| {}).unwrap();
    (parts, model.arena().grads().to_vec())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn computing_blocks_again_gives_the_same_bits_with_dropout_on() {
    let packed = Packed::synthetic(&[5, 17, 9, 30, 1, 12], 19);
    let loss = LossConfig { length_loss: LengthLoss::None, ..LossConfig::default() };
    for class in [ModelClass::RotaryStopping, ModelClass::Gpt2Stopping] {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let shape = |recompute| ModelShape { precision, recompute, ..small_shape_of(class, 0.2) };
            let (kept, kept_grads) = run(shape(Recompute::None), &packed, &loss, Some(7));
            let (again, again_grads) = run(shape(Recompute::Blocks), &packed, &loss, Some(7));
            assert_eq!(kept, again);
            assert_eq!(bits(&kept_grads), bits(&again_grads));
            let other = run(shape(Recompute::Blocks), &packed, &loss, Some(8)).1;
            assert_ne!(bits(&again_grads), bits(&other), "dropout is on");
        }
    }
}

/// A vocabulary so large that some examples alone are over 1 MiB of logits, others share it.
#[test]
fn the_budget_of_the_head_decides_how_but_not_what_is_computed() {
    let vocabulary = 30_011;
    let packed = Packed::synthetic(&[3, 40, 2, 9, 25, 4, 4], vocabulary);
    let shape = || ModelShape { num_embeddings: vocabulary, ..small_shape(0.0) };
    let loss = |mib| LossConfig { head_budget_mib: Some(mib), ..LossConfig::default() };
    let (whole, whole_grads) = run(shape(), &packed, &loss(512), None);
    for budget in [1, 2, 3] {
        let (parts, grads) = run(shape(), &packed, &loss(budget), None);
        for (found, expected) in parts.ce.iter().zip(&whole.ce) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
        }
        // Products of other sizes may be added up in another order: by oneDNN on one of AMD's processors this was 1.01e-6.
        let error = relative_error(&grads, &whole_grads);
        assert!(error < 2e-6, "{budget} MiB: {error}");
    }
}

#[test]
fn bf16_is_close_to_fp32() {
    let packed = Packed::synthetic(&[5, 17, 9, 30, 1, 12], 19);
    let shape = |precision| ModelShape { precision, ..small_shape(0.1) };
    let (exact, exact_grads) = run(shape(Precision::Fp32), &packed, &LossConfig::default(), Some(7));
    let (rounded, grads) = run(shape(Precision::Bf16), &packed, &LossConfig::default(), Some(7));
    let floats = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
    assert_close("ce", &floats(&rounded.ce), &floats(&exact.ce), 2e-2, 2e-2);
    let error = relative_error(&grads, &exact_grads);
    assert!(error < 3e-2, "{error}");
    assert_ne!(bits(&grads), bits(&exact_grads), "products are rounded");
}
