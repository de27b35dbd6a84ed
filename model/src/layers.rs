//! Linear map, layer norm and dropout with explicit backward passes that add into the gradient arena.

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::error::Result;

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
}

impl Linear {
    pub(crate) fn new(arena: &Arena, name: &str, with_bias: bool) -> Result<Self> {
        let (weight, weight_grad) = arena.views(&format!("{name}.weight"))?;
        let bias = with_bias.then(|| arena.views(&format!("{name}.bias"))).transpose()?;
        Ok(Self { weight, weight_grad, bias })
    }

    /// [N, in] -> [N, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let transposed = self.weight.f_tr()?;
        Ok(match &self.bias {
            Some((bias, _)) => bias.f_addmm(x, &transposed)?,
            None => x.f_mm(&transposed)?,
        })
    }

    /// As [`Linear::forward`] of a map without bias, into an existing buffer.
    pub(crate) fn forward_out(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        let _ = x.f_mm_out(out, &self.weight.f_tr()?)?;
        Ok(())
    }

    /// Adds the parameters' gradients and returns the input's.
    pub(crate) fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        self.backward_params(x, grad)?;
        Ok(grad.f_mm(&self.weight)?)
    }

    /// As [`Linear::backward`], the input's gradient into an existing buffer.
    pub(crate) fn backward_out(&self, x: &Tensor, grad: &Tensor, out: &Tensor) -> Result<()> {
        self.backward_params(x, grad)?;
        let _ = grad.f_mm_out(out, &self.weight)?;
        Ok(())
    }

    fn backward_params(&self, x: &Tensor, grad: &Tensor) -> Result<()> {
        let _ = self.weight_grad.shallow_clone().f_addmm_(&grad.f_tr()?, x)?;
        if let Some((_, bias_grad)) = &self.bias {
            let sum = grad.f_sum_dim_intlist(0, false, Kind::Float)?;
            let _ = bias_grad.shallow_clone().f_add_(&sum)?;
        }
        Ok(())
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

/// Zeroes each element with probability p and scales the rest by 1/(1-p); p = 0 does nothing at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout(pub(crate) f64);

impl Dropout {
    /// The result and, if anything can be dropped, which elements were kept.
    pub(crate) fn forward(self, x: Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if self.0 == 0.0 {
            return Ok((x, None));
        }
        let (out, kept) = x.f_native_dropout(self.0, true)?;
        Ok((out, Some(kept)))
    }

    /// Gradient of the input.
    pub(crate) fn backward(self, kept: Option<&Tensor>, grad: &Tensor) -> Result<Tensor> {
        Ok(match kept {
            Some(kept) => Tensor::f_native_dropout_backward(grad, kept, (1.0 - self.0).recip())?,
            None => grad.shallow_clone(),
        })
    }
}
