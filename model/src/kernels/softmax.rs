//! Softmax over the vocabulary, row by row: its sums, and then the gradient of the joint loss.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::operand::{Operand, elements, elements_mut};
use super::simd::{exp, max, sum};
use crate::error::Result;
use crate::parallel;

/// One row's part of the joint sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowSum {
    /// Largest logit.
    pub(crate) max: f32,
    /// Sum of exponentials relative to it.
    pub(crate) sum: f32,
}

/// A token that is missing in a row's gap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    pub(crate) row: usize,
    pub(crate) token: usize,
    /// What is taken from the gradient there; no token comes twice in a row.
    pub(crate) share: f32,
}

/// Maximum and sum of every row of logits [rows, V].
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

/// The logits of the targets (row, token).
pub(crate) fn pick(logits: &Tensor, targets: impl Iterator<Item = (usize, usize)>) -> Vec<f32> {
    let width = logits.size()[1] as usize;
    let values: &[f32] = elements(logits);
    targets.map(|(row, token)| values[row * width + token]).collect()
}

/// `weight exp(logit - log sum) - share` of type `kind`: what [rows, V] logits add to the loss's gradient, in their place if that is
/// f32. `targets` are sorted by row.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, wave};

    #[test]
    fn sums_and_gradients_equal_the_formula() {
        let logits = wave(&[9, 75], 0.2) * 4.0;
        let expected: Vec<f32> = logits.logsumexp(1, false).try_into().unwrap();
        let log_sums: Vec<f32> = row_sums(&logits).iter().map(|row| row.max + row.sum.ln()).collect();
        assert!(log_sums.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-5));
        assert_eq!(pick(&logits, [(2, 5)].into_iter()), [logits.double_value(&[2, 5]) as f32]);

        let weights: Vec<f32> = (0..9).map(|row| 0.1 * row as f32).collect();
        let target = |row, token| Target { row, token, share: 0.25 };
        let targets = [target(0, 3), target(0, 74), target(4, 1), target(8, 0)];
        let column = |values: &[f32]| Tensor::from_slice(values).unsqueeze(1);
        let formula = (&logits - column(&log_sums)).exp() * column(&weights);
        for target in &targets {
            let _ = formula.get(target.row as i64).get(target.token as i64).f_sub_scalar_(0.25).unwrap();
        }
        for kind in [Kind::Float, Kind::BFloat16] {
            let found = into_grads(logits.copy(), &log_sums, &weights, &targets, kind).unwrap();
            let bound = if kind == Kind::Float { 1e-6 } else { 1e-2 };
            close(&found, &formula.to_kind(kind), bound, "gradient");
        }
    }
}
