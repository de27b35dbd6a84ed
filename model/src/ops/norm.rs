//! Residual addition with the layer norm behind it.

use tch::{Kind, Tensor};

use super::dropout;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::kernels;
use crate::layers::Taped;

/// What is added to the residual stream.
#[derive(Debug)]
pub(crate) struct Branch<'a> {
    /// [N, d] f32, or elsewhere than on the host of the products' type; the sum may take its place.
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
    /// [N, 2] mean and one over the standard deviation of each row of the sum; [0, 2] where libtorch finds them again.
    pub(crate) stats: Tensor,
}

/// `sum = x + dropout(branch + bias)`, and its norm.
pub(crate) fn add_norm(x: &Tensor, branch: Option<Branch>, weights: &Weights) -> Result<Normed> {
    if kernels::can_take(x) {
        kernels::norm::add_norm(x, branch, weights)
    } else {
        by_torch(x, branch, weights)
    }
}

/// Given the gradient of the norm's output (f32 on the host), adds to `grad`, which is that of the sum by other ways, what comes through the
/// norm. Adds the parameters' gradients. With a branch (its dropout, the gradient of its bias), gives the branch's gradient.
pub(crate) fn add_norm_backward(
    grad: &mut Tensor,
    normed_grad: &Tensor,
    saved: &Normed,
    weights: &Weights,
    branch: Option<(Dropout, Option<&Tensor>)>,
) -> Result<Option<Tensor>> {
    if kernels::can_take(grad) {
        kernels::norm::add_norm_backward(grad, normed_grad, saved, weights, branch)
    } else {
        backward_by_torch(grad, normed_grad, saved, weights, branch)
    }
}

/// `x + dropout(branch + bias)`.
pub(crate) fn add(x: &Tensor, branch: Branch) -> Result<Tensor> {
    if kernels::can_take(x) { Ok(kernels::residual::add(x, branch)) } else { sum_by_torch(x, branch) }
}

/// The gradient of a branch, given that of the sum; adds that of its bias.
pub(crate) fn add_backward(
    grad: &Tensor,
    dropout: Dropout,
    bias: Option<&Tensor>,
    kind: Kind,
) -> Result<Tensor> {
    if kernels::can_take(grad) {
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
    Ok(x.f_add(&dropout::drop(&values, branch.dropout)?)?)
}

fn scale_by_torch(grad: &Tensor, dropout: Dropout, bias: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
    let dropped = dropout::drop(grad, dropout)?;
    if let Some(bias) = bias {
        let _ = bias.shallow_clone().f_add_(&dropped.f_sum_dim_intlist(0, false, Kind::Float)?)?;
    }
    Ok(dropped.f_to_kind(kind)?)
}

fn by_torch(x: &Tensor, branch: Option<Branch>, weights: &Weights) -> Result<Normed> {
    let sum = match branch {
        Some(branch) => sum_by_torch(x, branch)?,
        None => x.shallow_clone(),
    };
    let normed = sum.f_layer_norm([x.size()[1]], Some(weights.weight), weights.bias, weights.eps, false)?;
    let stats = Tensor::f_empty([0, 2], (Kind::Float, x.device()))?;
    Ok(Normed { sum, normed: normed.f_to_kind(weights.kind)?, stats })
}

/// libtorch's own backward pass, which tch has behind autograd only, takes fewer kernels than the formula by operations, and the
/// forward pass once more is one.
fn backward_by_torch(
    grad: &mut Tensor,
    normed_grad: &Tensor,
    saved: &Normed,
    weights: &Weights,
    branch: Option<(Dropout, Option<&Tensor>)>,
) -> Result<Option<Tensor>> {
    let inputs: Vec<&Tensor> = [&saved.sum, weights.weight].into_iter().chain(weights.bias).collect();
    let (_, taped) = Taped::record(&inputs, |inputs| {
        let width = [inputs[1].size()[0]];
        Ok(inputs[0].f_layer_norm(width, Some(&inputs[1]), inputs.get(2), weights.eps, false)?)
    })?;
    let targets = [&*grad, weights.weight_grad].into_iter().chain(weights.bias_grad);
    for (target, part) in targets.zip(taped.backward(&normed_grad.f_to_kind(Kind::Float)?)?) {
        let _ = target.shallow_clone().f_add_(&part)?;
    }
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
        let mut all = vec![saved.sum, saved.normed, grad];
        all.extend(out.unwrap());
        all.extend(grads.iter().map(Tensor::shallow_clone));
        all
    }
}
