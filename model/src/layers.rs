//! Linear map and layer norm on the arena's views, with backward passes that add into its gradients.

use tch::{Kind, Tensor};

use crate::arena::{Arena, Writes};
use crate::config::{ModelShape, Precision};
use crate::error::Result;
use crate::gemm;
use crate::ops::norm::{Normed, Weights, add_norm, add_norm_backward};
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

/// `y = x W^T + b` over packed rows. Products take operands of the type [`Linear::kind`].
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    weight_grad: Tensor,
    /// (value, gradient)
    bias: Option<(Tensor, Tensor)>,
    writes: Writes,
}

impl Linear {
    /// A map of the model's precision.
    pub(crate) fn new(arena: &Arena, name: &str, with_bias: bool) -> Result<Self> {
        let weight = arena.views(&format!("{name}.weight"))?;
        let bias = bias(arena, name, with_bias)?;
        Ok(Self { weight: weight.operand, weight_grad: weight.grad, bias, writes: arena.writes() })
    }

    /// The same with the rows of zeros that follow the matrix in the arena, so with outputs that say nothing.
    pub(crate) fn padded(arena: &Arena, name: &str) -> Result<Self> {
        let weight = arena.padded_views(&format!("{name}.weight"))?;
        Ok(Self { weight: weight.operand, weight_grad: weight.grad, bias: None, writes: arena.writes() })
    }

    /// A map that is f32 in every model.
    pub(crate) fn exact(arena: &Arena, name: &str, with_bias: bool) -> Result<Self> {
        let weight = arena.views(&format!("{name}.weight"))?;
        let bias = bias(arena, name, with_bias)?;
        Ok(Self { weight: weight.value, weight_grad: weight.grad, bias, writes: arena.writes() })
    }

    /// Type of the operands.
    pub(crate) fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// [out, in] as products take it.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref().map(|(bias, _)| bias)
    }

    pub(crate) fn bias_grad(&self) -> Option<&Tensor> {
        self.bias.as_ref().map(|(_, grad)| grad)
    }

    /// [N, in] -> [N, out] f32, without the bias.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        gemm::linear(x, &self.weight)
    }

    /// The same within a block: of the operands' type where no kernel of ours goes on from it.
    pub(crate) fn inner_product(&self, x: &Tensor) -> Result<Tensor> {
        gemm::inner(x, &self.weight)
    }

    /// Adds the weight's gradient and returns the input's, of the type of an inner product.
    pub(crate) fn product_backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        gemm::weight_grad(&self.weight_grad, grad, x, !self.writes.is_first())?;
        gemm::input_grad(grad, &self.weight)
    }

    /// Makes the weight's gradient 0 if nothing was added to it since gradients were cleared.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.writes.is_first() {
            let _ = self.weight_grad.shallow_clone().f_zero_()?;
        }
        Ok(())
    }

    /// [N, in] -> [N, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = self.product(x)?;
        if let Some(bias) = self.bias() {
            let _ = out.f_add_(bias)?;
        }
        Ok(out)
    }

    /// Adds the parameters' gradients and returns the input's.
    pub(crate) fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        if let Some(bias_grad) = self.bias_grad() {
            let sum = grad.f_sum_dim_intlist(0, false, Kind::Float)?;
            let _ = bias_grad.shallow_clone().f_add_(&sum)?;
        }
        self.product_backward(x, grad)
    }
}

/// Normalisation over the features with weight and perhaps a bias.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: (Tensor, Tensor),
    bias: Option<(Tensor, Tensor)>,
    eps: f64,
    /// Type of its output.
    kind: Kind,
}

impl LayerNorm {
    pub(crate) fn new(arena: &Arena, name: &str, with_bias: bool, eps: f64, kind: Kind) -> Result<Self> {
        let weight = arena.views(&format!("{name}.weight"))?;
        Ok(Self { weight: (weight.value, weight.grad), bias: bias(arena, name, with_bias)?, eps, kind })
    }

    /// The norm before the output matrix, if the model has one.
    pub(crate) fn last(arena: &Arena, shape: &ModelShape, kind: Kind) -> Result<Option<Self>> {
        let parts = Parts::of(shape.config.class);
        let eps = shape.config.layer_norm_eps;
        let norm = || Self::new(arena, parts.final_norm, parts.biased, eps, kind);
        shape.config.has_final_norm().then(norm).transpose()
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights {
            weight: &self.weight.0,
            weight_grad: &self.weight.1,
            bias: self.bias.as_ref().map(|(bias, _)| bias),
            bias_grad: self.bias.as_ref().map(|(_, grad)| grad),
            eps: self.eps,
            kind: self.kind,
        }
    }

    /// [N, d] f32 -> [N, d].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Normed> {
        add_norm(x, None, &self.weights())
    }

    /// Adds the parameters' gradients and returns the input's, [N, d] f32 both.
    pub(crate) fn backward(&self, saved: &Normed, grad: &Tensor) -> Result<Tensor> {
        let mut input = grad.f_zeros_like()?;
        add_norm_backward(&mut input, grad, saved, &self.weights(), None)?;
        Ok(input)
    }
}

/// (value, gradient) of a part's bias.
fn bias(arena: &Arena, name: &str, with_bias: bool) -> Result<Option<(Tensor, Tensor)>> {
    let views = with_bias.then(|| arena.views(&format!("{name}.bias"))).transpose()?;
    Ok(views.map(|views| (views.value, views.grad)))
}

/// Type of the operands of products.
pub(crate) fn operand_kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}
