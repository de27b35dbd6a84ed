//! The matrix products of a linear map, each sent to whichever library computes it fastest. Results are f32, but for those of bf16
//! that stay between products on another device: there they are rounded, as in the reference's autocast, since that device's time
//! goes into moving them.
//!
//! On the host, products of bf16 go to the processor's matrix unit, or else to MKL's own function, which libtorch brings but does
//! not ask: both add up and give out f32 and add to what is there, where libtorch's own products are rounded to bf16 and
//! converted and added in passes of their own. libtorch gives f32 products to MKL, which on processors of other makers than Intel
//! leaves more than half of their speed unused; there they go to a crate, and those of bf16 as well: the operands are widened to f32
//! first, which changes no value.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod bf16;
mod simd;
pub(crate) mod small;

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

use self::bf16::Products;
use self::small::{Matrix, Onto};
use crate::error::Result;
use crate::kernels;
use crate::kernels::operand::{Operand, elements, elements_mut};
use crate::parallel;

/// [`linear`] within a block: of the operands' type where no kernel of ours goes on from it.
pub(crate) fn inner(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if kernels::can_take(x) { linear(x, weight) } else { Ok(x.f_mm(&weight.f_tr()?)?) }
}

/// `x w^T`: [n, in] and [out, in] of one type -> [n, out] f32.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let size = [x.size()[0], weight.size()[0]];
    if let Some([x, weight]) = widened([x, weight])? {
        return linear(&x, &weight);
    }
    if let Some(own) = Own::of(x) {
        let out = Tensor::f_empty(size, (Kind::Float, x.device()))?;
        own.product([x, weight], [false, true], &out, Onto::Nothing);
        return Ok(out);
    }
    by_torch(x, &weight.f_tr()?)
}

/// `grad w`: [n, out] and [out, in] of one type -> [n, in] f32, or of their type where no kernel of ours goes on from it.
pub(crate) fn input_grad(grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !kernels::can_take(grad) {
        return Ok(grad.f_mm(weight)?);
    }
    if let Some([grad, weight]) = widened([grad, weight])? {
        return input_grad(&grad, &weight);
    }
    if let Some(own) = Own::of(grad) {
        let out = Tensor::f_empty([grad.size()[0], weight.size()[1]], (Kind::Float, grad.device()))?;
        own.product([grad, weight], [false, false], &out, Onto::Nothing);
        return Ok(out);
    }
    by_torch(grad, weight)
}

/// `target = grad^T x`, or `+=` if it `adds`: [n, out] and [n, in] of one type -> [out, in] f32.
pub(crate) fn weight_grad(target: &Tensor, grad: &Tensor, x: &Tensor, adds: bool) -> Result<()> {
    if let Some([grad, x]) = widened([grad, x])? {
        return weight_grad(target, &grad, &x, adds);
    }
    let mut target = target.shallow_clone();
    let grad_t = grad.f_tr()?;
    if let Some(own) = Own::of(grad) {
        own.product([grad, x], [true, false], &target, if adds { Onto::Target } else { Onto::Memory });
    } else if grad.kind() != Kind::Float {
        let product = by_torch(&grad_t, x)?;
        if adds {
            let _ = target.f_add_(&product)?;
        } else {
            target.f_copy_(&product)?;
        }
    } else if adds {
        let _ = target.f_addmm_(&grad_t, x)?;
    } else {
        let _ = grad_t.f_mm_out(&target, x)?;
    }
    Ok(())
}

/// Products that libtorch is not asked for.
#[derive(Clone, Copy)]
enum Own {
    Rounded(Products),
    Simd,
}

impl Own {
    /// What takes the products of this operand; none if libtorch does.
    fn of(operand: &Tensor) -> Option<Self> {
        static SLOW_MKL: LazyLock<bool> = LazyLock::new(|| !is_intel());
        match operand.kind() {
            _ if operand.device() != Device::Cpu => None,
            Kind::BFloat16 => Products::best().filter(|_| kernels::can_take(operand)).map(Self::Rounded),
            Kind::Float => SLOW_MKL.then_some(Self::Simd),
            _ => None,
        }
    }

    /// `out (+)= a b` on all threads, with a and b transposed where `transposed` says so.
    fn product(self, operands: [&Tensor; 2], transposed: [bool; 2], out: &Tensor, onto: Onto) {
        let inner = operands[0].size()[usize::from(!transposed[0])];
        let mnk = [out.size()[0], out.size()[1], inner].map(|size| size as usize);
        let (mut out, threads) = (out.shallow_clone(), parallel::threads());
        let out = elements_mut(&mut out);
        match self {
            Self::Rounded(products) => {
                products.product(mnk, matrices(operands, transposed), onto, out, threads)
            }
            Self::Simd => simd::product(mnk, matrices(operands, transposed), onto, out, threads),
        }
    }
}

fn matrices<'a, T: Operand>(operands: [&'a Tensor; 2], transposed: [bool; 2]) -> [Matrix<'a, T>; 2] {
    [0, 1].map(|side| {
        let matrix = Matrix::new(elements(operands[side]), operands[side].size()[1] as usize);
        if transposed[side] { matrix.transposed() } else { matrix }
    })
}

/// How often each side is cut for so many threads: so that the largest part is small and little is laid out twice.
fn split(strips: [usize; 2], threads: usize) -> [usize; 2] {
    let cut = |rows: usize| [rows, threads / rows];
    let cost = |parts: &[usize; 2]| {
        let share = |side: usize| strips[side].div_ceil(parts[side]);
        (share(0) * share(1), share(0) + share(1))
    };
    (1..=threads).map(cut).min_by_key(cost).unwrap_or([1, 1])
}

/// libtorch's own product, with a result in f32: of bf16 on a GPU by the product itself.
fn by_torch(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.kind() != Kind::Float && a.device().is_cuda() {
        return Ok(a.f_mm_dtype(b, Kind::Float)?);
    }
    Ok(a.f_mm(b)?.f_to_kind(Kind::Float)?)
}

/// bf16 operands in f32, if they are on a host that has nothing of ours for their products.
fn widened(operands: [&Tensor; 2]) -> Result<Option<[Tensor; 2]>> {
    let [a, b] = operands;
    if a.kind() == Kind::Float || a.device() != Device::Cpu || Products::best().is_some() {
        return Ok(None);
    }
    Ok(Some([a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?]))
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
            let product = x.mm(&weight.tr());
            let round = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
            close(&by_torch(&round(&x), &round(&weight).tr()).unwrap(), &product, 3e-2, "torch");
            close(&by_torch(&x, &weight.tr()).unwrap(), &product, 1e-5, "torch");
            let out = wave(&[rows, outputs], 0.1);
            let expected = &out + &product;
            Own::Simd.product([&x, &weight], [false, true], &out, Onto::Target);
            close(&out, &expected, 1e-5, "added");
            let _ = out.shallow_clone().fill_(f64::NAN);
            Own::Simd.product([&x, &weight], [false, true], &out, Onto::Nothing);
            close(&out, &product, 1e-5, "written");
        }
    }

    #[test]
    fn parts_cover_a_result_for_any_number_of_threads() {
        let (x, weight) = (wave(&[70, 40], 0.3), wave(&[130, 40], 0.9));
        let expected = x.mm(&weight.tr());
        for threads in 1..9 {
            let mut out = wave(&[70, 130], 0.2);
            let operands = matrices([&x, &weight], [false, true]);
            simd::product([70, 130, 40], operands, Onto::Memory, elements_mut(&mut out), threads);
            close(&out, &expected, 1e-5, "parts");
        }
    }
}
