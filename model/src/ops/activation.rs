//! The activation between the two matrices of the feed-forward part.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::kernels;

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    /// max(x, 0).
    Relu,
    /// GELU by its approximation with tanh.
    TanhGelu,
    /// GELU by the error function.
    ErfGelu,
}

/// The activated values, and what backward needs beside them.
#[derive(Debug)]
pub(crate) struct Activated {
    /// [N, F].
    pub(crate) out: Tensor,
    /// [N, F] what was activated; none if the result tells the slope.
    pub(crate) before: Option<Tensor>,
}

/// `curve(widened + bias)`, of type `kind`.
pub(crate) fn activate(
    widened: &Tensor,
    bias: Option<&Tensor>,
    curve: Curve,
    kind: Kind,
) -> Result<Activated> {
    if kernels::can_take(widened) {
        kernels::activation::activate(widened, bias, curve, kind)
    } else {
        by_torch(widened, bias, curve, kind)
    }
}

/// The gradient before the activation, of the activation's type, given that behind it (on the host f32); adds that of the bias.
pub(crate) fn activate_backward(
    grad: &Tensor,
    activated: &Activated,
    bias_grad: Option<&Tensor>,
    curve: Curve,
) -> Result<Tensor> {
    if kernels::can_take(grad) {
        kernels::activation::activate_backward(grad, activated, bias_grad, curve)
    } else {
        backward_by_torch(grad, activated, bias_grad, curve)
    }
}

/// Computed in the type of `widened`, whose operations round their results only.
fn by_torch(widened: &Tensor, bias: Option<&Tensor>, curve: Curve, kind: Kind) -> Result<Activated> {
    let x = match bias {
        Some(bias) => widened.f_add(&bias.f_to_kind(widened.kind())?)?,
        None => widened.shallow_clone(),
    };
    Ok(match curve.approximation() {
        None => Activated { out: x.f_relu()?.f_to_kind(kind)?, before: None },
        Some(name) => Activated { out: x.f_gelu(name)?.f_to_kind(kind)?, before: Some(x.f_to_kind(kind)?) },
    })
}

fn backward_by_torch(
    grad: &Tensor,
    activated: &Activated,
    bias_grad: Option<&Tensor>,
    curve: Curve,
) -> Result<Tensor> {
    let saved = activated.before.as_ref().unwrap_or(&activated.out).f_to_kind(grad.kind())?;
    let scaled = match curve.approximation() {
        None => saved.f_threshold_backward(grad, 0)?,
        Some(name) => saved.f_gelu_backward(grad, name)?,
    };
    if let Some(bias_grad) = bias_grad {
        let _ = bias_grad.shallow_clone().f_add_(&scaled.f_sum_dim_intlist(0, false, Kind::Float)?)?;
    }
    Ok(scaled.f_to_kind(activated.out.kind())?)
}

impl Curve {
    /// libtorch's name of the kind of GELU.
    fn approximation(self) -> Option<&'static str> {
        match self {
            Self::Relu => None,
            Self::TanhGelu => Some("tanh"),
            Self::ErfGelu => Some("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, wave};

    #[test]
    fn kernel_and_torch_agree() {
        let size = [37, 50];
        let (x, bias, grad) = (wave(&size, 0.3) * 3.0, wave(&size[1..], 0.7), wave(&size, 0.4));
        for kind in [Kind::Float, Kind::BFloat16] {
            for curve in [Curve::Relu, Curve::TanhGelu, Curve::ErfGelu] {
                let bound = if kind == Kind::Float { 1e-5 } else { 2e-2 };
                let kernel = kernels::activation::activate(&x, Some(&bias), curve, kind).unwrap();
                let torch = by_torch(&x, Some(&bias), curve, kind).unwrap();
                close(&kernel.out, &torch.out, bound, "forward");
                let sums = [wave(&size[1..], 0.1), wave(&size[1..], 0.1)];
                let found =
                    kernels::activation::activate_backward(&grad, &kernel, Some(&sums[0]), curve).unwrap();
                let expected = backward_by_torch(&grad, &torch, Some(&sums[1]), curve).unwrap();
                close(&found, &expected, bound, "backward");
                close(&sums[0], &sums[1], 10.0 * bound, "bias");
            }
        }
    }
}
