//! Softmax over rows of logits that belong to one joint distribution.

use tch::{Kind, Tensor};

use super::on_host;
use crate::error::Result;
use crate::head::to_floats;
use crate::kernels;

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
pub(crate) fn row_sums(logits: &Tensor) -> Result<Vec<RowSum>> {
    if on_host(logits) { Ok(kernels::softmax::row_sums(logits)) } else { sums_by_torch(logits) }
}

/// The logits of the targets.
pub(crate) fn pick(logits: &Tensor, targets: impl Iterator<Item = (usize, usize)>) -> Result<Vec<f32>> {
    let width = logits.size()[1];
    let flat: Vec<i64> = targets.map(|(row, token)| row as i64 * width + token as i64).collect();
    let flat = Tensor::f_from_slice(&flat)?.f_to_device(logits.device())?;
    to_floats(&logits.f_view([-1])?.f_index_select(0, &flat)?)
}

/// `weight exp(logit - log sum) - share` of type `kind`: what [rows, V] logits add to the loss's gradient. `targets` are sorted by row.
pub(crate) fn into_grads(
    logits: Tensor,
    log_sums: &[f32],
    weights: &[f32],
    targets: &[Target],
    kind: Kind,
) -> Result<Tensor> {
    if on_host(&logits) {
        kernels::softmax::into_grads(logits, log_sums, weights, targets, kind)
    } else {
        grads_by_torch(logits, log_sums, weights, targets, kind)
    }
}

fn sums_by_torch(logits: &Tensor) -> Result<Vec<RowSum>> {
    let maxima = logits.f_amax(1, true)?;
    let sums = logits.f_sub(&maxima)?.f_exp_()?.f_sum_dim_intlist(1, false, Kind::Float)?;
    let (maxima, sums) = (to_floats(&maxima.f_view([-1])?)?, to_floats(&sums)?);
    Ok(maxima.into_iter().zip(sums).map(|(max, sum)| RowSum { max, sum }).collect())
}

fn grads_by_torch(
    mut logits: Tensor,
    log_sums: &[f32],
    weights: &[f32],
    targets: &[Target],
    kind: Kind,
) -> Result<Tensor> {
    let device = logits.device();
    let column = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device)?.f_unsqueeze(1);
    let grads = logits.f_sub_(&column(log_sums)?)?.f_exp_()?.f_mul_(&column(weights)?)?;
    let width = grads.size()[1];
    let flat: Vec<i64> =
        targets.iter().map(|target| target.row as i64 * width + target.token as i64).collect();
    let shares: Vec<f32> = targets.iter().map(|target| -target.share).collect();
    let (flat, shares) = (Tensor::f_from_slice(&flat)?, Tensor::f_from_slice(&shares)?);
    let _ = grads.f_view([-1])?.f_index_add_(0, &flat.f_to_device(device)?, &shares.f_to_device(device)?)?;
    Ok(grads.f_view([-1, width])?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, wave};

    #[test]
    fn kernel_and_torch_agree() {
        let logits = wave(&[9, 75], 0.2) * 4.0;
        let (kernel, torch) = (kernels::softmax::row_sums(&logits), sums_by_torch(&logits).unwrap());
        for (kernel, torch) in kernel.iter().zip(&torch) {
            assert_eq!(kernel.max, torch.max);
            assert!((kernel.sum - torch.sum).abs() < 1e-4 * torch.sum);
        }
        let weights: Vec<f32> = (0..9).map(|row| 0.1 * row as f32).collect();
        let log_sums: Vec<f32> = torch.iter().map(|row| row.max + row.sum.ln()).collect();
        let target = |row, token| Target { row, token, share: 0.25 };
        let targets = [target(0, 3), target(0, 74), target(4, 1), target(8, 0)];
        for kind in [Kind::Float, Kind::BFloat16] {
            let kernel = kernels::softmax::into_grads(logits.copy(), &log_sums, &weights, &targets, kind);
            let torch = grads_by_torch(logits.copy(), &log_sums, &weights, &targets, kind);
            let bound = if kind == Kind::Float { 1e-6 } else { 1e-2 };
            close(&kernel.unwrap(), &torch.unwrap(), bound, "gradient");
        }
        assert_eq!(pick(&logits, [(2, 5)].into_iter()).unwrap(), [logits.double_value(&[2, 5]) as f32]);
    }
}
