//! Softmax over the vocabulary, row by row: its sums, and then the gradient of the joint loss.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::operand::{Operand, elements, elements_mut};
use super::simd::{exp, max, sum};
use crate::error::Result;
use crate::ops::softmax::{RowSum, Target};
use crate::parallel;

/// As [`crate::ops::softmax::row_sums`], on the host.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn row_sums(logits: &Tensor) -> Vec<RowSum> {
    let width = logits.size()[1] as usize;
    let values: &[f32] = elements(logits);
    let mut sums = vec![RowSum::default(); values.len() / width];
    let items = values.chunks_exact(width).zip(&mut sums).collect();
    parallel::for_each_item(items, |(row, out): (&[f32], &mut RowSum)| {
        let max = max(row);
        *out = RowSum { max, sum: sum([row], |[x]| exp(x - max)) };
    });
    sums
}

/// As [`crate::ops::softmax::into_grads`], on the host; f32 gradients take the logits' place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn into_grads(
    mut logits: Tensor,
    log_sums: &[f32],
    weights: &[f32],
    targets: &[Target],
    kind: Kind,
) -> Result<Tensor> {
    let width = logits.size()[1] as usize;
    if kind == Kind::Float {
        let rows = elements_mut::<f32>(&mut logits).chunks_exact_mut(width);
        let items = rows.zip(of_rows(targets, log_sums.len())).enumerate().collect();
        parallel::for_each_item(items, |(row, (values, targets)): (usize, (&mut [f32], &[Target]))| {
            let (log_sum, weight) = (log_sums[row], weights[row]);
            values.iter_mut().for_each(|value| *value = weight * exp(*value - log_sum));
            targets.iter().for_each(|target| values[target.token] -= target.share);
        });
        return Ok(logits);
    }
    let mut grads = Tensor::f_empty(logits.size(), (kind, logits.device()))?;
    let rows = elements::<f32>(&logits).chunks_exact(width);
    let rows = rows.zip(elements_mut::<half::bf16>(&mut grads).chunks_exact_mut(width));
    let items = rows.zip(of_rows(targets, log_sums.len())).enumerate().collect();
    type Item<'a> = (usize, ((&'a [f32], &'a mut [half::bf16]), &'a [Target]));
    parallel::for_each_item(items, |(row, ((values, grads), targets)): Item| {
        let (log_sum, weight) = (log_sums[row], weights[row]);
        rounded_row(values, log_sum, weight, grads);
        for target in targets {
            let grad = weight * exp(values[target.token] - log_sum) - target.share;
            grads[target.token] = Operand::from_f32(grad);
        }
    });
    Ok(grads)
}

#[inline(always)]
fn rounded_row(values: &[f32], log_sum: f32, weight: f32, grads: &mut [half::bf16]) {
    let grads = &mut grads[..values.len()];
    for i in 0..values.len() {
        grads[i] = Operand::from_f32(weight * exp(values[i] - log_sum));
    }
}

/// The targets of each row; they are sorted by row.
fn of_rows(targets: &[Target], rows: usize) -> impl Iterator<Item = &[Target]> {
    let mut rest = targets;
    (0..rows).map(move |row| {
        let (these, after) = rest.split_at(rest.partition_point(|target| target.row <= row));
        rest = after;
        these
    })
}
