//! Whole micro-batches as another device computes them, by libtorch's operations alone, against the kernels.

#[path = "../tests/common/mod.rs"]
mod common;

use std::ops::Range;

use tch::{Kind, Tensor};

use self::common::{Packed, small_shape_of};
use crate::testing::{as_elsewhere, close};
use crate::{LengthLoss, LossConfig, LossParts, Model, ModelClass, ModelShape, Precision, Recompute};

const LENGTHS: [i64; 8] = [5, 17, 9, 30, 1, 12, 9, 17];

fn forward_backward(model: &mut Model, packed: &Packed, loss: &LossConfig, seed: Option<u64>) -> LossParts {
    model.clear_grads();
    model.forward_backward(&packed.batch(), loss, 0.125, seed, &mut |_: Range<usize>| {}).unwrap()
}

/// Losses and gradients of one batch.
fn run(shape: &ModelShape, packed: &Packed, loss: &LossConfig) -> (LossParts, Tensor) {
    let mut model = Model::new(shape.clone(), 3).unwrap();
    let parts = forward_backward(&mut model, packed, loss, None);
    (parts, Tensor::from_slice(model.arena().grads()))
}

fn assert_same(shape: &ModelShape, packed: &Packed, loss: &LossConfig, bound: f64) {
    let kernels = run(shape, packed, loss);
    let (parts, grads) = as_elsewhere(|| run(shape, packed, loss));
    let tensor = |values: &[f64]| Tensor::from_slice(values);
    close(&tensor(&parts.ce), &tensor(&kernels.0.ce), bound, "token losses");
    close(&tensor(&parts.length), &tensor(&kernels.0.length), bound, "head's losses");
    assert_eq!(parts.n_drops, kernels.0.n_drops);
    close(&grads, &kernels.1, 10.0 * bound, &format!("{:?} gradients", shape.config.class));
}

#[test]
fn losses_and_gradients_are_those_of_the_kernels() {
    let packed = Packed::synthetic(&LENGTHS, 19);
    for class in [ModelClass::RotaryStopping, ModelClass::Gpt2Stopping] {
        for (precision, bound) in [(Precision::Fp32, 2e-6), (Precision::Bf16, 1e-2)] {
            for recompute in [Recompute::None, Recompute::Blocks] {
                let shape = ModelShape { precision, recompute, ..small_shape_of(class, 0.0) };
                assert_same(&shape, &packed, &LossConfig::default(), bound);
            }
        }
    }
}

/// A vocabulary so large that examples are over the budget alone, or share it.
#[test]
fn pieces_and_groups_of_the_head_are_those_of_the_kernels() {
    let packed = Packed::synthetic(&[3, 40, 2, 9, 25, 4, 4], 30_011);
    let shape = small_shape_of(ModelClass::RotaryStopping, 0.0);
    let shape = ModelShape { num_embeddings: 30_011, ..shape };
    for budget in [1, 3, 64] {
        let loss = LossConfig { head_budget_mib: Some(budget), ..LossConfig::default() };
        assert_same(&shape, &packed, &loss, 2e-6);
    }
}

#[test]
fn nothing_dropped_is_nothing_lost() {
    let mut packed = Packed::synthetic(&[4, 6], 19);
    packed.tgt_ptr.iter_mut().for_each(|end| *end = 0);
    packed.tgt_ids.clear();
    packed.tgt_counts.clear();
    assert_same(&small_shape_of(ModelClass::RotaryStopping, 0.0), &packed, &LossConfig::default(), 2e-6);
}

#[test]
fn logits_and_losses_without_gradients_are_those_of_the_kernels() {
    let packed = Packed::synthetic(&LENGTHS, 19);
    let model = Model::new(small_shape_of(ModelClass::RotaryStopping, 0.0), 3).unwrap();
    let all = || {
        let loss = model.loss(&packed.batch(), &LossConfig::default()).unwrap();
        let (tokens, classes) = model.logits(&packed.batch()).unwrap();
        (Tensor::from_slice(&loss.ce), tokens, classes.unwrap())
    };
    let (kernels, torch) = (all(), as_elsewhere(all));
    close(&torch.0, &kernels.0, 2e-6, "losses");
    close(&torch.1, &kernels.1, 2e-6, "token logits");
    close(&torch.2, &kernels.2, 2e-6, "class logits");
}

/// Forward and backward draw the same masks, which are those of the seed: the gradient is the slope of the loss as a function of
/// the parameters, and says by how much a step along it changes the loss.
#[test]
fn with_dropout_the_gradient_is_the_slope_of_the_loss() {
    const SEED: Option<u64> = Some(7);
    let packed = Packed::synthetic(&LENGTHS, 19);
    let loss = LossConfig { length_loss: LengthLoss::None, ..LossConfig::default() };
    for class in [ModelClass::RotaryStopping, ModelClass::Gpt2Stopping] {
        for recompute in [Recompute::None, Recompute::Blocks] {
            let shape = ModelShape { recompute, ..small_shape_of(class, 0.3) };
            let mut model = Model::new(shape, 3).unwrap();
            let loss_of = |model: &mut Model, seed| {
                as_elsewhere(|| forward_backward(model, &packed, &loss, seed)).loss_sum() * 0.125
            };
            let here = loss_of(&mut model, SEED);
            assert_eq!(here.to_bits(), loss_of(&mut model, SEED).to_bits());
            assert_ne!(here.to_bits(), loss_of(&mut model, Some(8)).to_bits(), "dropout is on");
            loss_of(&mut model, SEED);
            let grads = model.arena().grads().to_vec();
            let squared: f64 = grads.iter().map(|&grad| f64::from(grad).powi(2)).sum();
            let step = 2e-3 / squared.sqrt();
            let mut at = |steps: f64| {
                let params = model.arena_mut().params_mut();
                params
                    .iter_mut()
                    .zip(&grads)
                    .for_each(|(value, grad)| *value += (steps * step) as f32 * grad);
                loss_of(&mut model, SEED)
            };
            let slope = (at(1.0) - at(-2.0)) / (2.0 * step);
            assert!((slope / squared - 1.0).abs() < 0.01, "{class:?} {slope} {squared}");
        }
    }
}

#[test]
fn products_within_blocks_are_rounded_as_autocast_does() {
    let rounded = |rows: i64| Tensor::ones([rows, 8], (Kind::BFloat16, tch::Device::Cpu));
    let kind = |product: Tensor| product.kind();
    let (x, weight) = (rounded(3), rounded(5));
    as_elsewhere(|| {
        assert_eq!(kind(crate::gemm::inner(&x, &weight).unwrap()), Kind::BFloat16);
        assert_eq!(kind(crate::gemm::linear(&x, &weight).unwrap()), Kind::Float);
        assert_eq!(kind(crate::gemm::input_grad(&rounded(3), &rounded(8)).unwrap()), Kind::BFloat16);
    });
}
