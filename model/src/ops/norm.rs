//! Residual addition with the layer norm behind it.

use tch::{Kind, Tensor};

use super::on_host;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::kernels;

/// What is added to the residual stream.
#[derive(Debug)]
pub(crate) struct Branch<'a> {
    /// [N, d]; the sum may take its place.
    pub(crate) values: Tensor,
    /// [d]
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) dropout: Dropout,
}

/// Parameters of a layer norm over d features.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) weight_grad: &'a Tensor,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) bias_grad: Option<&'a Tensor>,
    pub(crate) eps: f64,
    /// Type of what is normalised.
    pub(crate) kind: Kind,
}

/// The sum, what the norm makes of it, and what backward needs of the norm.
#[derive(Debug)]
pub(crate) struct Normed {
    /// [N, d] f32.
    pub(crate) sum: Tensor,
    /// [N, d].
    pub(crate) normed: Tensor,
    /// [N, 2] mean and one over the standard deviation of each row of the sum.
    pub(crate) stats: Tensor,
}

/// `sum = x + dropout(branch + bias)`, and its norm.
pub(crate) fn add_norm(x: &Tensor, branch: Option<Branch>, weights: &Weights) -> Result<Normed> {
    if on_host(x) { kernels::norm::add_norm(x, branch, weights) } else { by_torch(x, branch, weights) }
}

/// Given the gradient of the norm's output, adds to `grad`, which is that of the sum by other ways, what comes through the
/// norm. Adds the parameters' gradients. With a branch (its dropout, the gradient of its bias), gives the branch's gradient.
pub(crate) fn add_norm_backward(
    grad: &mut Tensor,
    normed_grad: &Tensor,
    saved: &Normed,
    weights: &Weights,
    branch: Option<(Dropout, Option<&Tensor>)>,
) -> Result<Option<Tensor>> {
    if on_host(grad) {
        kernels::norm::add_norm_backward(grad, normed_grad, saved, weights, branch)
    } else {
        backward_by_torch(grad, normed_grad, saved, weights, branch)
    }
}

/// `x + dropout(branch + bias)`.
pub(crate) fn add(x: &Tensor, branch: Branch) -> Result<Tensor> {
    if on_host(x) { Ok(kernels::residual::add(x, branch)) } else { sum_by_torch(x, branch) }
}

/// The gradient of a branch, given that of the sum; adds that of its bias.
pub(crate) fn add_backward(
    grad: &Tensor,
    dropout: Dropout,
    bias: Option<&Tensor>,
    kind: Kind,
) -> Result<Tensor> {
    if on_host(grad) {
        kernels::residual::add_backward(grad, dropout, bias, kind)
    } else {
        scale_by_torch(grad, dropout, bias, kind)
    }
}

fn sum_by_torch(x: &Tensor, branch: Branch) -> Result<Tensor> {
    let mut values = branch.values;
    if let Some(bias) = branch.bias {
        let _ = values.f_add_(bias)?;
    }
    if let Some(mask) = branch.dropout.mask(&values.size(), values.device())? {
        let _ = values.f_mul_(&mask)?;
    }
    Ok(values.f_add_(x)?)
}

fn scale_by_torch(grad: &Tensor, dropout: Dropout, bias: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
    let masked = match dropout.mask(&grad.size(), grad.device())? {
        Some(mask) => grad.f_mul(&mask)?,
        None => grad.shallow_clone(),
    };
    if let Some(bias) = bias {
        let _ = bias.shallow_clone().f_add_(&masked.f_sum_dim_intlist(0, false, Kind::Float)?)?;
    }
    Ok(masked.f_to_kind(kind)?)
}

fn by_torch(x: &Tensor, branch: Option<Branch>, weights: &Weights) -> Result<Normed> {
    let sum = match branch {
        Some(branch) => sum_by_torch(x, branch)?,
        None => x.shallow_clone(),
    };
    let width = [x.size()[1]];
    let (normed, mean, scale) =
        sum.f_native_layer_norm(width, Some(weights.weight), weights.bias, weights.eps)?;
    let stats = Tensor::f_cat(&[mean, scale], 1)?;
    Ok(Normed { sum, normed: normed.f_to_kind(weights.kind)?, stats })
}

fn backward_by_torch(
    grad: &mut Tensor,
    normed_grad: &Tensor,
    saved: &Normed,
    weights: &Weights,
    branch: Option<(Dropout, Option<&Tensor>)>,
) -> Result<Option<Tensor>> {
    let (mean, scale) = (saved.stats.f_narrow(1, 0, 1)?, saved.stats.f_narrow(1, 1, 1)?);
    let unit = saved.sum.f_sub(&mean)?.f_mul_(&scale)?;
    let by_rows = |values: &Tensor| values.f_sum_dim_intlist(0, false, Kind::Float);
    let _ = weights.weight_grad.shallow_clone().f_add_(&by_rows(&normed_grad.f_mul(&unit)?)?)?;
    if let Some(bias_grad) = weights.bias_grad {
        let _ = bias_grad.shallow_clone().f_add_(&by_rows(normed_grad)?)?;
    }
    let weighted = normed_grad.f_mul(weights.weight)?;
    let shift = weighted.f_mean_dim(1, true, Kind::Float)?;
    let tilt = weighted.f_mul(&unit)?.f_mean_dim(1, true, Kind::Float)?;
    let through = weighted.f_sub(&shift)?.f_sub_(&unit.f_mul(&tilt)?)?.f_mul_(&scale)?;
    let _ = grad.f_add_(&through)?;
    branch.map(|(dropout, bias)| scale_by_torch(grad, dropout, bias, weights.kind)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, wave};

    #[test]
    fn kernel_and_torch_agree() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (rows, width, biased, dropped) in
                [(1, 16, true, true), (37, 48, true, true), (40, 33, false, false)]
            {
                let run = |host: bool| run(host, kind, [rows, width], biased, dropped);
                let (kernel, torch) = (run(true), run(false));
                assert_eq!(kernel.len(), torch.len());
                let bound = if kind == Kind::Float { 2e-5 } else { 2e-2 };
                for (at, (kernel, torch)) in kernel.iter().zip(&torch).enumerate() {
                    close(kernel, torch, bound, &format!("{kind:?} {rows} {width} output {at}"));
                }
            }
        }
    }

    #[test]
    fn the_sum_by_itself_agrees_as_well() {
        let size = [37, 48];
        let (x, bias, dropout) = (wave(&size, 0.3), wave(&size[1..], 0.7), Dropout::new(0.3, 5));
        let branch = || Branch { values: wave(&size, 0.9), bias: Some(&bias), dropout };
        close(&kernels::residual::add(&x, branch()), &sum_by_torch(&x, branch()).unwrap(), 1e-6, "sum");
        let sums = [wave(&size[1..], 0.1), wave(&size[1..], 0.1)];
        let kernel = kernels::residual::add_backward(&x, dropout, Some(&sums[0]), Kind::Float).unwrap();
        let torch = scale_by_torch(&x, dropout, Some(&sums[1]), Kind::Float).unwrap();
        close(&kernel, &torch, 1e-6, "gradient");
        close(&sums[0], &sums[1], 1e-5, "bias");
    }

    fn run(host: bool, kind: Kind, size: [i64; 2], biased: bool, dropped: bool) -> Vec<Tensor> {
        let (x, weight, bias) = (wave(&size, 0.3), wave(&size[1..], 0.7), wave(&size[1..], 1.1));
        let grads: Vec<Tensor> = (0..3).map(|step| wave(&size[1..], f64::from(step))).collect();
        let weights = Weights {
            weight: &weight,
            weight_grad: &grads[0],
            bias: biased.then_some(&bias),
            bias_grad: biased.then_some(&grads[1]),
            eps: 1e-5,
            kind,
        };
        let dropout = if dropped { Dropout::new(0.3, 5) } else { Dropout::OFF };
        let branch =
            || dropped.then(|| Branch { values: wave(&size, 0.9), bias: biased.then_some(&bias), dropout });
        let normed = if host {
            kernels::norm::add_norm(&x, branch(), &weights)
        } else {
            by_torch(&x, branch(), &weights)
        };
        let saved = normed.unwrap();
        let (mut grad, normed_grad) = (wave(&size, 0.2), wave(&size, 0.4));
        let branch = dropped.then_some((dropout, biased.then_some(&grads[2])));
        let out = if host {
            kernels::norm::add_norm_backward(&mut grad, &normed_grad, &saved, &weights, branch)
        } else {
            backward_by_torch(&mut grad, &normed_grad, &saved, &weights, branch)
        };
        let mut all = vec![saved.sum, saved.normed, saved.stats, grad];
        all.extend(out.unwrap());
        all.extend(grads.iter().map(Tensor::shallow_clone));
        all
    }
}
