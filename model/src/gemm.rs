//! The matrix products of a linear map, each sent to whichever of libtorch's two libraries computes it faster on a CPU.
//!
//! libtorch gives f32 matrix products to MKL, which on processors of other makers than Intel leaves more than half of their
//! speed unused, but f32 convolutions to oneDNN, which does not. A linear map is a convolution of width 1 over a
//! channels-last "image", so there large products go that way; on Intel's own MKL is the faster one, by a quarter. Both are
//! plain f32 and differ in rounding only.
//!
//! In bf16 the operands are rounded first; libtorch then uses oneDNN by itself, which adds up in f32.

use std::sync::LazyLock;

use tch::{Kind, Tensor};

use crate::config::Precision;
use crate::error::Result;

/// Below this many multiplications the call itself is what counts.
const LEAST_PRODUCTS: i64 = 1 << 22;

/// Below this many rows, copying the weight's gradient out of oneDNN's own tensor eats what it saves.
const LEAST_ROWS: i64 = 256;

/// `x w^T + bias`: [n, in] and [out, in] -> [n, out].
pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    if precision == Precision::Bf16 {
        let product = round(x)?.f_mm(&round(weight)?.f_tr()?)?.f_to_kind(Kind::Float)?;
        return Ok(match bias {
            Some(bias) => { product }.f_add_(bias)?,
            None => product,
        });
    }
    if suits_onednn(x, weight) {
        return convolve(x, weight, bias);
    }
    let transposed = weight.f_tr()?;
    Ok(match bias {
        Some(bias) => bias.f_addmm(x, &transposed)?,
        None => x.f_mm(&transposed)?,
    })
}

/// `grad w`: [n, out] and [out, in] -> [n, in].
pub(crate) fn input_grad(grad: &Tensor, weight: &Tensor, precision: Precision) -> Result<Tensor> {
    if precision == Precision::Bf16 {
        return Ok(round(grad)?.f_mm(&round(weight)?)?.f_to_kind(Kind::Float)?);
    }
    if suits_onednn(grad, weight) {
        return convolve(grad, &weight.f_tr()?.f_contiguous()?, None);
    }
    Ok(grad.f_mm(weight)?)
}

/// `target += grad^T x`: [n, out] and [n, in] -> [out, in].
pub(crate) fn add_weight_grad(
    target: &Tensor,
    grad: &Tensor,
    x: &Tensor,
    precision: Precision,
) -> Result<()> {
    let mut target = target.shallow_clone();
    if precision == Precision::Bf16 {
        let _ = target.f_add_(&round(grad)?.f_tr()?.f_mm(&round(x)?)?)?;
    } else if x.size()[0] >= LEAST_ROWS && suits_onednn(x, &target) {
        add_weight_grad_by_onednn(target, grad, x)?;
    } else {
        let _ = target.f_addmm_(&grad.f_tr()?, x)?;
    }
    Ok(())
}

fn round(operand: &Tensor) -> Result<Tensor> {
    Ok(operand.f_to_kind(Kind::BFloat16)?)
}

fn suits_onednn(rows: &Tensor, matrix: &Tensor) -> bool {
    static SLOW_MKL: LazyLock<bool> = LazyLock::new(|| !is_intel() && tch::utils::has_mkldnn());
    let products = rows.size()[0] * matrix.numel() as i64;
    products >= LEAST_PRODUCTS && matrix.kind() == Kind::Float && *SLOW_MKL
}

/// Whether the processor is of MKL's own maker.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

fn add_weight_grad_by_onednn(mut target: Tensor, grad: &Tensor, x: &Tensor) -> Result<()> {
    let (x, grad) = (x.f_to_mkldnn(Kind::Float)?, grad.f_to_mkldnn(Kind::Float)?);
    let (product, _) = x.f_mkldnn_linear_backward_weights(&grad, &target, false)?;
    let _ = target.f_add_(&product.f_to_dense(Kind::Float, false)?)?;
    Ok(())
}

/// The convolution of width 1 that maps the rows of `x`, taken as the channels of n pixels, by `weight`.
fn convolve(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, inputs) = x.f_contiguous()?.size2()?;
    let outputs = weight.size()[0];
    let image = x.f_contiguous()?.f_view([1, rows, 1, inputs])?.f_permute([0, 3, 1, 2])?;
    let kernel = weight.f_view([outputs, inputs, 1, 1])?;
    let out = image.f_mkldnn_convolution(&kernel, bias, [0, 0], [1, 1], [1, 1], 1)?;
    Ok(out.f_permute([0, 2, 3, 1])?.f_reshape([rows, outputs])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Numbers of both signs, without randomness.
    fn matrix(rows: i64, columns: i64, step: f64) -> Tensor {
        let count = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu));
        (count * step).sin().to_kind(Kind::Float).view([rows, columns])
    }

    #[test]
    fn both_libraries_give_the_same_products() {
        // either side of each bound
        for (rows, inputs, outputs) in [(7, 12, 5), (600, 96, 120), (400, 200, 130)] {
            let (x, grad) = (matrix(rows, inputs, 0.37), matrix(rows, outputs, 0.53));
            let (weight, bias) = (matrix(outputs, inputs, 0.71), matrix(1, outputs, 0.9).view([-1]));
            let close = |found: &Tensor, expected: &Tensor| {
                assert_eq!(found.size(), expected.size());
                let error = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
                assert!(error < 1e-3 && found.is_contiguous(), "{rows}: {error}");
            };
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let product = double(&x).mm(&double(&weight).tr());
            close(&linear(&x, &weight, None, Precision::Fp32).unwrap(), &product);
            close(&linear(&x, &weight, Some(&bias), Precision::Fp32).unwrap(), &(product + double(&bias)));
            close(&input_grad(&grad, &weight, Precision::Fp32).unwrap(), &double(&grad).mm(&double(&weight)));
            let expected = double(&weight) + double(&grad).tr().mm(&double(&x));
            let target = weight.copy();
            add_weight_grad(&target, &grad, &x, Precision::Fp32).unwrap();
            close(&target, &expected);

            // whichever of the two this processor prefers
            let product = double(&x).mm(&double(&weight).tr());
            close(&convolve(&x, &weight, None).unwrap(), &product);
            close(&convolve(&x, &weight, Some(&bias)).unwrap(), &(product + double(&bias)));
            let target = weight.copy();
            add_weight_grad_by_onednn(target.shallow_clone(), &grad, &x).unwrap();
            close(&target, &expected);
        }
    }
}
