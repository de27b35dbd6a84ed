//! A residual addition with bias and dropout, and the layer norm behind it, in one pass over each row; and its backward pass.

use multiversion::multiversion;
use tch::Tensor;

use super::operand::{Operand, elements, elements_mut, with_operand};
use super::residual::{add_row, scale_row};
use super::simd::sum;
use super::{ROWS, add_partial_sums};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::ops::norm::{Branch, Normed, Weights};
use crate::parallel;

/// As [`crate::ops::norm::add_norm`], on the host.
pub(crate) fn add_norm(x: &Tensor, branch: Option<Branch>, weights: &Weights) -> Result<Normed> {
    let (rows, width) = x.size2()?;
    let mut normed = Tensor::f_empty([rows, width], (weights.kind, x.device()))?;
    let mut stats = Tensor::f_empty([rows, 2], (tch::Kind::Float, x.device()))?;
    let sum = with_operand!(weights.kind, T => {
        let out = elements_mut::<T>(&mut normed);
        forward(x, branch, weights, out, elements_mut(&mut stats))?
    });
    Ok(Normed { sum, normed, stats })
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward<T: Operand>(
    x: &Tensor,
    branch: Option<Branch>,
    weights: &Weights,
    normed: &mut [T],
    stats: &mut [f32],
) -> Result<Tensor> {
    let width = x.size()[1] as usize;
    let (weight, bias) = (elements::<f32>(weights.weight), weights.bias.map(elements::<f32>));
    let outputs = normed.chunks_mut(ROWS * width).zip(stats.chunks_mut(2 * ROWS));
    let eps = weights.eps as f32;
    let Some(Branch { mut values, bias: branch_bias, dropout }) = branch else {
        let items = elements::<f32>(x).chunks(ROWS * width).zip(outputs).collect();
        parallel::for_each_item(items, |(x, (normed, stats)): (&[f32], (&mut [T], &mut [f32]))| {
            let outputs = normed.chunks_exact_mut(width).zip(stats.chunks_exact_mut(2));
            for (x, (normed, stats)) in x.chunks_exact(width).zip(outputs) {
                normalise_row(x, weight, bias, eps, normed, stats);
            }
        });
        return Ok(x.shallow_clone());
    };
    let branch_bias = branch_bias.map(elements::<f32>);
    let sums = elements_mut::<f32>(&mut values).chunks_mut(ROWS * width);
    let items = sums.zip(elements::<f32>(x).chunks(ROWS * width)).zip(outputs).enumerate().collect();
    type Item<'a, T> = (usize, ((&'a mut [f32], &'a [f32]), (&'a mut [T], &'a mut [f32])));
    parallel::for_each_item(items, |(index, ((sums, x), (normed, stats))): Item<T>| {
        let mut factors = vec![1.0; width];
        let inputs = sums.chunks_exact_mut(width).zip(x.chunks_exact(width));
        let outputs = normed.chunks_exact_mut(width).zip(stats.chunks_exact_mut(2));
        for (row, ((sums, x), (normed, stats))) in inputs.zip(outputs).enumerate() {
            dropout.factors(index * ROWS + row, &mut factors);
            add_row(sums, x, branch_bias, &factors);
            normalise_row(sums, weight, bias, eps, normed, stats);
        }
    });
    Ok(values)
}

#[inline(always)]
fn normalise_row<T: Operand>(
    values: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    normed: &mut [T],
    stats: &mut [f32],
) {
    let width = values.len();
    let (normed, weight) = (&mut normed[..width], &weight[..width]);
    let mean = sum([values], |[x]| x) / width as f32;
    let variance = sum([values], |[x]| (x - mean) * (x - mean)) / width as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    match bias {
        Some(bias) => {
            let bias = &bias[..width];
            for i in 0..width {
                normed[i] = T::from_f32((values[i] - mean) * scale * weight[i] + bias[i]);
            }
        }
        None => {
            for i in 0..width {
                normed[i] = T::from_f32((values[i] - mean) * scale * weight[i]);
            }
        }
    }
    stats.copy_from_slice(&[mean, scale]);
}

/// What the backward pass of one row range needs beside its gradients.
struct Backward<'a> {
    weight: &'a [f32],
    dropout: Option<Dropout>,
    /// Whether norm and branch have biases.
    biased: [bool; 2],
}

/// As [`crate::ops::norm::add_norm_backward`], on the host.
pub(crate) fn add_norm_backward(
    grad: &mut Tensor,
    normed_grad: &Tensor,
    saved: &Normed,
    weights: &Weights,
    branch: Option<(Dropout, Option<&Tensor>)>,
) -> Result<Option<Tensor>> {
    let mut out = match branch {
        Some(_) => Some(Tensor::f_empty(grad.size(), (weights.kind, grad.device()))?),
        None => None,
    };
    let job = Backward {
        weight: elements(weights.weight),
        dropout: branch.map(|(dropout, _)| dropout),
        biased: [weights.bias.is_some(), branch.is_some_and(|(_, bias)| bias.is_some())],
    };
    let partials = with_operand!(weights.kind, T => {
        let out = out.as_mut().map(elements_mut::<T>);
        backward(&job, elements_mut(grad), elements(normed_grad), elements(&saved.sum), elements(&saved.stats), out)
    });
    let width = job.weight.len();
    let mut targets = [Some(weights.weight_grad), weights.bias_grad, branch.and_then(|(_, bias)| bias)];
    let mut sums = vec![0.0; 3 * width];
    add_partial_sums(&partials, 3 * width, &mut sums);
    for (target, sums) in targets.iter_mut().zip(sums.chunks_exact(width)) {
        if let Some(target) = target {
            let mut target = target.shallow_clone();
            let target: &mut [f32] = elements_mut(&mut target);
            target.iter_mut().zip(sums).for_each(|(target, sum)| *target += sum);
        }
    }
    Ok(out)
}

/// The gradients of weight, bias and branch bias of every task, [tasks, 3, d].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward<T: Operand>(
    job: &Backward,
    grad: &mut [f32],
    normed_grad: &[f32],
    sums: &[f32],
    stats: &[f32],
    out: Option<&mut [T]>,
) -> Vec<f32> {
    let width = job.weight.len();
    let chunk = ROWS * width;
    let tasks = grad.len().div_ceil(chunk);
    let mut partials = vec![0.0; tasks * 3 * width];
    let outs: Vec<Option<&mut [T]>> = match out {
        Some(out) => out.chunks_mut(chunk).map(Some).collect(),
        None => (0..tasks).map(|_| None).collect(),
    };
    let items = grad.chunks_mut(chunk).zip(partials.chunks_mut(3 * width)).zip(outs).enumerate().collect();
    type Item<'a, T> = (usize, ((&'a mut [f32], &'a mut [f32]), Option<&'a mut [T]>));
    parallel::for_each_item(items, |(index, ((grad, partial), mut out)): Item<T>| {
        let mut factors = vec![1.0; width];
        for (row, grad) in grad.chunks_exact_mut(width).enumerate() {
            let at = index * ROWS + row;
            let [normed_grad, values] = [normed_grad, sums].map(|all| &all[at * width..][..width]);
            let out = out.as_mut().map(|out| &mut out[row * width..][..width]);
            let [weight_sums, rest @ ..] = split(partial, width);
            norm_row_backward(job, values, &stats[2 * at..][..2], normed_grad, grad, [weight_sums, rest[0]]);
            let [_, _, branch_sums] = split(partial, width);
            if let (Some(dropout), Some(out)) = (job.dropout, out) {
                dropout.factors(at, &mut factors);
                scale_row(grad, &factors, out, job.biased[1].then_some(branch_sums));
            }
        }
    });
    partials
}

#[inline(always)]
fn split(partial: &mut [f32], width: usize) -> [&mut [f32]; 3] {
    let (first, rest) = partial.split_at_mut(width);
    let (second, third) = rest.split_at_mut(width);
    [first, second, third]
}

/// `grad += d loss / d values`, and the sums for weight and bias.
#[inline(always)]
fn norm_row_backward(
    job: &Backward,
    values: &[f32],
    stats: &[f32],
    normed_grad: &[f32],
    grad: &mut [f32],
    [weight_sums, bias_sums]: [&mut [f32]; 2],
) {
    let width = values.len();
    let (mean, scale) = (stats[0], stats[1]);
    let (weight, normed_grad, grad) = (&job.weight[..width], &normed_grad[..width], &mut grad[..width]);
    let (weight_sums, bias_sums) = (&mut weight_sums[..width], &mut bias_sums[..width]);
    let unit = |x: f32| (x - mean) * scale;
    let shift = sum([normed_grad, weight], |[grad, weight]| grad * weight) / width as f32;
    let tilt = sum([normed_grad, weight, values], |[grad, weight, x]| grad * weight * unit(x)) / width as f32;
    for i in 0..width {
        let x = unit(values[i]);
        grad[i] += scale * (normed_grad[i] * weight[i] - shift - x * tilt);
        weight_sums[i] += normed_grad[i] * x;
    }
    if job.biased[0] {
        for i in 0..width {
            bias_sums[i] += normed_grad[i];
        }
    }
}
