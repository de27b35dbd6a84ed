//! Linear map and layer norm with explicit backward passes that add into the gradient arena.

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::config::Precision;
use crate::error::Result;
use crate::gemm;

/// A piece of computation whose backward tch offers only through autograd: inputs are cut off, the output keeps its graph.
#[derive(Debug)]
pub(crate) struct Taped {
    inputs: Vec<Tensor>,
    output: Tensor,
}

impl Taped {
    /// Runs `f` on detached copies of the handles; the returned output carries no graph.
    pub(crate) fn record(
        inputs: &[&Tensor],
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<(Tensor, Self)> {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|input| input.f_detach()?.f_set_requires_grad(true))
            .collect::<std::result::Result<_, _>>()?;
        let output = tch::with_grad(|| f(&inputs))?;
        Ok((output.f_detach()?, Self { inputs, output }))
    }

    /// Gradients of the inputs, given the output's. The engine starts from ones, so the gradient goes in as a dot product.
    pub(crate) fn backward(self, grad: &Tensor) -> Result<Vec<Tensor>> {
        let product = tch::with_grad(|| self.output.f_reshape([-1])?.f_dot(&grad.f_reshape([-1])?))?;
        Ok(Tensor::f_run_backward(&[product], &self.inputs, false, false)?)
    }
}

/// `y = x W^T + b` over packed rows.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    weight_grad: Tensor,
    bias: Option<(Tensor, Tensor)>,
    precision: Precision,
}

impl Linear {
    pub(crate) fn new(arena: &Arena, name: &str, with_bias: bool, precision: Precision) -> Result<Self> {
        let (weight, weight_grad) = arena.views(&format!("{name}.weight"))?;
        let bias = with_bias.then(|| arena.views(&format!("{name}.bias"))).transpose()?;
        Ok(Self { weight, weight_grad, bias, precision })
    }

    /// [N, in] -> [N, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        gemm::linear(x, &self.weight, self.bias.as_ref().map(|(bias, _)| bias), self.precision)
    }

    /// Adds the parameters' gradients and returns the input's.
    pub(crate) fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        gemm::add_weight_grad(&self.weight_grad, grad, x, self.precision)?;
        if let Some((_, bias_grad)) = &self.bias {
            let sum = grad.f_sum_dim_intlist(0, false, Kind::Float)?;
            let _ = bias_grad.shallow_clone().f_add_(&sum)?;
        }
        gemm::input_grad(grad, &self.weight, self.precision)
    }
}

/// Normalisation over the features with weight and bias.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: (Tensor, Tensor),
    bias: (Tensor, Tensor),
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(arena: &Arena, name: &str, eps: f64) -> Result<Self> {
        let weight = arena.views(&format!("{name}.weight"))?;
        let bias = arena.views(&format!("{name}.bias"))?;
        Ok(Self { weight, bias, eps })
    }

    /// [N, d] -> [N, d].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Taped)> {
        let width = self.weight.0.size();
        Taped::record(&[x, &self.weight.0, &self.bias.0], |inputs| {
            let (weight, bias) = (Some(&inputs[1]), Some(&inputs[2]));
            Ok(inputs[0].f_layer_norm(width.as_slice(), weight, bias, self.eps, false)?)
        })
    }

    /// Adds the parameters' gradients and returns the input's.
    pub(crate) fn backward(&self, taped: Taped, grad: &Tensor) -> Result<Tensor> {
        let mut grads = taped.backward(grad)?.into_iter();
        let input = grads.next();
        for (target, grad) in [&self.weight.1, &self.bias.1].into_iter().zip(grads) {
            let _ = target.shallow_clone().f_add_(&grad)?;
        }
        Ok(input.expect("one gradient per taped input, and the input is the first"))
    }
}
