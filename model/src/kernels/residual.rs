//! The residual addition by itself, with bias and dropout, and its backward pass.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::operand::{Operand, elements, elements_mut, with_operand};
use super::{ROWS, add_partial_sums};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::ops::norm::Branch;
use crate::parallel;

/// As [`crate::ops::norm::add`], on the host.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn add(x: &Tensor, branch: Branch) -> Tensor {
    let width = x.size()[1] as usize;
    let Branch { mut values, bias, dropout } = branch;
    let bias = bias.map(elements::<f32>);
    let sums = elements_mut::<f32>(&mut values).chunks_mut(ROWS * width);
    let items = sums.zip(elements::<f32>(x).chunks(ROWS * width)).enumerate().collect();
    parallel::for_each_item(items, |(index, (sums, x)): (usize, (&mut [f32], &[f32]))| {
        let mut factors = vec![1.0; width];
        for (row, (sums, x)) in sums.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            dropout.factors(index * ROWS + row, &mut factors);
            add_row(sums, x, bias, &factors);
        }
    });
    values
}

/// `branch = x + factors (branch + bias)`.
#[inline(always)]
pub(super) fn add_row(branch: &mut [f32], x: &[f32], bias: Option<&[f32]>, factors: &[f32]) {
    let width = branch.len();
    let (x, factors) = (&x[..width], &factors[..width]);
    match bias {
        Some(bias) => {
            let bias = &bias[..width];
            for i in 0..width {
                branch[i] = x[i] + factors[i] * (branch[i] + bias[i]);
            }
        }
        None => {
            for i in 0..width {
                branch[i] = x[i] + factors[i] * branch[i];
            }
        }
    }
}

/// As [`crate::ops::norm::add_backward`], on the host.
pub(crate) fn add_backward(
    grad: &Tensor,
    dropout: Dropout,
    bias: Option<&Tensor>,
    kind: Kind,
) -> Result<Tensor> {
    let width = grad.size()[1] as usize;
    let mut out = Tensor::f_empty(grad.size(), (kind, grad.device()))?;
    let partials = with_operand!(kind, T => {
        backward(elements(grad), width, dropout, bias.is_some(), elements_mut::<T>(&mut out))
    });
    if let Some(bias) = bias {
        add_partial_sums(&partials, width, elements_mut(&mut bias.shallow_clone()));
    }
    Ok(out)
}

/// The sums over rows of every task, [tasks, width].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn backward<T: Operand>(
    grad: &[f32],
    width: usize,
    dropout: Dropout,
    biased: bool,
    out: &mut [T],
) -> Vec<f32> {
    let chunk = ROWS * width;
    let mut partials = vec![0.0; grad.len().div_ceil(chunk) * width];
    let items = grad.chunks(chunk).zip(out.chunks_mut(chunk)).zip(partials.chunks_mut(width));
    type Item<'a, T> = (usize, ((&'a [f32], &'a mut [T]), &'a mut [f32]));
    parallel::for_each_item(items.enumerate().collect(), |(index, ((grad, out), sums)): Item<T>| {
        let mut factors = vec![1.0; width];
        for (row, (grad, out)) in grad.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            dropout.factors(index * ROWS + row, &mut factors);
            scale_row(grad, &factors, out, biased.then_some(&mut *sums));
        }
    });
    partials
}

/// `out = factors grad`, and its sum for the bias.
#[inline(always)]
pub(super) fn scale_row<T: Operand>(grad: &[f32], factors: &[f32], out: &mut [T], sums: Option<&mut [f32]>) {
    let width = grad.len();
    let (factors, out) = (&factors[..width], &mut out[..width]);
    for i in 0..width {
        out[i] = T::from_f32(grad[i] * factors[i]);
    }
    if let Some(sums) = sums {
        let sums = &mut sums[..width];
        for i in 0..width {
            sums[i] += grad[i] * factors[i];
        }
    }
}
