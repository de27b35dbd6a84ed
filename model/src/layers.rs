//! Linear map and layer norm with explicit backward passes that add into the gradient arena.

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::config::{ModelShape, Precision};
use crate::error::Result;
use crate::gemm;
use crate::parts::Parts;

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
        let weight = arena.views(&format!("{name}.weight"))?;
        let bias = with_bias.then(|| pair(arena, &format!("{name}.bias"))).transpose()?;
        Ok(Self { weight: weight.value, weight_grad: weight.grad, bias, precision })
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

/// Normalisation over the features with weight and perhaps a bias.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: (Tensor, Tensor),
    bias: Option<(Tensor, Tensor)>,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(arena: &Arena, name: &str, with_bias: bool, eps: f64) -> Result<Self> {
        let weight = pair(arena, &format!("{name}.weight"))?;
        let bias = with_bias.then(|| pair(arena, &format!("{name}.bias"))).transpose()?;
        Ok(Self { weight, bias, eps })
    }

    /// The norm before the output matrix, if the model has one.
    pub(crate) fn last(arena: &Arena, shape: &ModelShape) -> Result<Option<Self>> {
        let parts = Parts::of(shape.config.class);
        let eps = shape.config.layer_norm_eps;
        let norm = || Self::new(arena, parts.final_norm, parts.biased, eps);
        shape.config.has_final_norm().then(norm).transpose()
    }

    /// [N, d] -> [N, d].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Taped)> {
        let width = self.weight.0.size();
        let inputs: Vec<&Tensor> = [x].into_iter().chain(self.parameters().map(|(value, _)| value)).collect();
        Taped::record(&inputs, |inputs| {
            Ok(inputs[0].f_layer_norm(width.as_slice(), inputs.get(1), inputs.get(2), self.eps, false)?)
        })
    }

    /// Adds the parameters' gradients and returns the input's.
    pub(crate) fn backward(&self, taped: Taped, grad: &Tensor) -> Result<Tensor> {
        let mut grads = taped.backward(grad)?.into_iter();
        let input = grads.next();
        for ((_, target), grad) in self.parameters().zip(grads) {
            let _ = target.shallow_clone().f_add_(&grad)?;
        }
        Ok(input.expect("one gradient per taped input, and the input is the first"))
    }

    /// (value, gradient) of weight and bias.
    fn parameters(&self) -> impl Iterator<Item = &(Tensor, Tensor)> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

/// (value, gradient) of one parameter.
fn pair(arena: &Arena, name: &str) -> Result<(Tensor, Tensor)> {
    let views = arena.views(name)?;
    Ok((views.value, views.grad))
}
