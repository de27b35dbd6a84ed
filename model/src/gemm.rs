//! The matrix products of a linear map, each sent to whichever library computes it fastest. Results are f32, but for those of bf16
//! that stay between products on another device: there they are rounded, as in the reference's autocast, since that device's time
//! goes into moving them.
//!
//! On the host, products of bf16 go to the processor's matrix unit, or else to MKL's own function, which libtorch brings but does
//! not ask: both add up and give out f32 and add to what is there, where libtorch's own products are rounded to bf16 and
//! converted and added in passes of their own. libtorch gives f32 products to MKL, which on processors of other makers than Intel
//! leaves more than half of their speed unused, but f32 convolutions to oneDNN, which does not. A linear map is a convolution of
//! width 1 over a channels-last "image", so there large products go that way. Where neither MKL nor the processor knows bf16,
//! libtorch would take such products one number at a time: there the operands are widened to f32 first, which changes no value.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod bf16;
pub(crate) mod small;

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

use self::bf16::Products;
use self::small::{Matrix, Onto};
use crate::error::Result;
use crate::kernels;
use crate::kernels::operand::{elements, elements_mut};
use crate::parallel;

/// Below this many multiplications the call itself is what counts.
const LEAST_PRODUCTS: i64 = 1 << 22;

/// Below this many rows, copying the weight's gradient out of oneDNN's own tensor eats what it saves.
const LEAST_ROWS: i64 = 256;

/// [`linear`] within a block: of the operands' type where no kernel of ours goes on from it.
pub(crate) fn inner(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if kernels::can_take(x) { linear(x, weight) } else { Ok(x.f_mm(&weight.f_tr()?)?) }
}

/// `x w^T`: [n, in] and [out, in] of one type -> [n, out] f32.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let size = [x.size()[0], weight.size()[0]];
    if let Some(products) = host_products(x) {
        let out = Tensor::f_empty(size, (Kind::Float, x.device()))?;
        product(products, [x, weight], [false, true], &out, Onto::Nothing);
        return Ok(out);
    }
    if let Some([x, weight]) = widened([x, weight])? {
        return linear(&x, &weight);
    }
    if x.kind() != Kind::Float {
        return by_torch(x, &weight.f_tr()?);
    }
    if suits_onednn(x, weight) {
        return convolve(x, weight);
    }
    Ok(x.f_mm(&weight.f_tr()?)?)
}

/// `grad w`: [n, out] and [out, in] of one type -> [n, in] f32, or of their type where no kernel of ours goes on from it.
pub(crate) fn input_grad(grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !kernels::can_take(grad) {
        return Ok(grad.f_mm(weight)?);
    }
    if let Some(products) = host_products(grad) {
        let out = Tensor::f_empty([grad.size()[0], weight.size()[1]], (Kind::Float, grad.device()))?;
        product(products, [grad, weight], [false, false], &out, Onto::Nothing);
        return Ok(out);
    }
    if let Some([grad, weight]) = widened([grad, weight])? {
        return input_grad(&grad, &weight);
    }
    if grad.kind() != Kind::Float {
        return by_torch(grad, weight);
    }
    if suits_onednn(grad, weight) {
        return convolve(grad, &weight.f_tr()?.f_contiguous()?);
    }
    Ok(grad.f_mm(weight)?)
}

/// `target = grad^T x`, or `+=` if it `adds`: [n, out] and [n, in] of one type -> [out, in] f32.
pub(crate) fn weight_grad(target: &Tensor, grad: &Tensor, x: &Tensor, adds: bool) -> Result<()> {
    let mut target = target.shallow_clone();
    if let Some(products) = host_products(grad) {
        let onto = if adds { Onto::Target } else { Onto::Memory };
        product(products, [grad, x], [true, false], &target, onto);
    } else if let Some([grad, x]) = widened([grad, x])? {
        weight_grad(&target, &grad, &x, adds)?;
    } else if grad.kind() != Kind::Float {
        let product = by_torch(&grad.f_tr()?, x)?;
        let _ = if adds {
            target.f_add_(&product)?
        } else {
            target.f_copy_(&product)?;
            target
        };
    } else if x.size()[0] >= LEAST_ROWS && suits_onednn(x, &target) {
        if !adds {
            let _ = target.f_zero_()?;
        }
        add_weight_grad_by_onednn(target, grad, x)?;
    } else if adds {
        let _ = target.f_addmm_(&grad.f_tr()?, x)?;
    } else {
        let _ = grad.f_tr()?.f_mm_out(&target, x)?;
    }
    Ok(())
}

/// What takes the products of this operand, if it is of bf16 and on the host.
fn host_products(operand: &Tensor) -> Option<Products> {
    let fits = operand.kind() == Kind::BFloat16 && kernels::can_take(operand);
    Products::best().filter(|_| fits)
}

/// `out (+)= a b` on all threads, with a and b transposed where `transposed` says so.
fn product(products: Products, operands: [&Tensor; 2], transposed: [bool; 2], out: &Tensor, onto: Onto) {
    let matrix = |side: usize| {
        let matrix = Matrix::new(elements(operands[side]), operands[side].size()[1] as usize);
        if transposed[side] { matrix.transposed() } else { matrix }
    };
    let inner = operands[0].size()[usize::from(!transposed[0])];
    let mnk = [out.size()[0], out.size()[1], inner].map(|size| size as usize);
    let mut out = out.shallow_clone();
    products.product(mnk, [matrix(0), matrix(1)], onto, elements_mut(&mut out), parallel::threads());
}

/// libtorch's own product of bf16, with a result in f32: on a GPU by the product itself.
fn by_torch(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cuda() {
        return Ok(a.f_mm_dtype(b, Kind::Float)?);
    }
    Ok(a.f_mm(b)?.f_to_kind(Kind::Float)?)
}

/// bf16 operands in f32, if they are on a host whose processor has no instructions for their products.
fn widened(operands: [&Tensor; 2]) -> Result<Option<[Tensor; 2]>> {
    let [a, b] = operands;
    if a.kind() == Kind::Float || a.device() != Device::Cpu || knows_bf16() {
        return Ok(None);
    }
    Ok(Some([a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?]))
}

fn suits_onednn(rows: &Tensor, matrix: &Tensor) -> bool {
    static SLOW_MKL: LazyLock<bool> = LazyLock::new(|| !is_intel() && tch::utils::has_mkldnn());
    let products = rows.size()[0] * matrix.numel() as i64;
    products >= LEAST_PRODUCTS && rows.device() == Device::Cpu && *SLOW_MKL
}

/// Whether libtorch's products of bf16 use instructions for them.
#[cfg(target_arch = "x86_64")]
fn knows_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn knows_bf16() -> bool {
    true
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
fn convolve(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, inputs) = x.f_contiguous()?.size2()?;
    let outputs = weight.size()[0];
    let image = x.f_contiguous()?.f_view([1, rows, 1, inputs])?.f_permute([0, 3, 1, 2])?;
    let kernel = weight.f_view([outputs, inputs, 1, 1])?;
    let out = image.f_mkldnn_convolution(&kernel, None::<&Tensor>, [0, 0], [1, 1], [1, 1], 1)?;
    Ok(out.f_permute([0, 2, 3, 1])?.f_reshape([rows, outputs])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, wave};

    const SIZES: [[i64; 3]; 4] = [[1, 3, 2], [7, 12, 5], [600, 96, 120], [400, 200, 130]];

    #[test]
    fn every_library_gives_the_same_products() {
        for [rows, inputs, outputs] in SIZES {
            for kind in [Kind::Float, Kind::BFloat16] {
                let operand = |size: [i64; 2], phase| wave(&size, phase).to_kind(kind);
                let x = operand([rows, inputs], 0.3);
                let (grad, weight) = (operand([rows, outputs], 0.7), operand([outputs, inputs], 0.9));
                let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let expect = |found: &Tensor, expected: Tensor| {
                    close(found, &expected.to_kind(Kind::Float), 1e-5, &format!("{rows} {kind:?}"));
                };
                expect(&linear(&x, &weight).unwrap(), double(&x).mm(&double(&weight).tr()));
                expect(&input_grad(&grad, &weight).unwrap(), double(&grad).mm(&double(&weight)));
                let target = wave(&[outputs, inputs], 0.2);
                let product = double(&grad).tr().mm(&double(&x));
                let expected = double(&target) + &product;
                weight_grad(&target, &grad, &x, true).unwrap();
                expect(&target, expected);
                // What was there does not matter, not even what no number is.
                let _ = target.shallow_clone().fill_(f64::NAN);
                weight_grad(&target, &grad, &x, false).unwrap();
                expect(&target, product);
            }
        }
    }

    #[test]
    fn the_other_ways_give_them_too() {
        for [rows, inputs, outputs] in SIZES {
            let (x, weight) = (wave(&[rows, inputs], 0.3), wave(&[outputs, inputs], 0.9));
            close(&convolve(&x, &weight).unwrap(), &x.mm(&weight.tr()), 1e-5, "convolution");
            let (target, grad) = (wave(&[outputs, inputs], 0.2), wave(&[rows, outputs], 0.7));
            let expected = &target + grad.tr().mm(&x);
            add_weight_grad_by_onednn(target.shallow_clone(), &grad, &x).unwrap();
            close(&target, &expected, 1e-5, "onednn");
            let round = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
            let rounded = by_torch(&round(&x), &round(&weight).tr()).unwrap();
            close(&rounded, &x.mm(&weight.tr()), 3e-2, "torch");
        }
    }
}
