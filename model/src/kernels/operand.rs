//! The types that products take: f32, or bf16 with its own rounding, since the compiler vectorises plain bit arithmetic.

use half::bf16;
use tch::{Kind, Tensor};

use crate::flat::Element;

/// A type of products' operands.
pub(crate) trait Operand: Element + Send + Sync + 'static {
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Operand for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Operand for bf16 {
    /// To the nearest, ties to even.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let is_nan = (bits & 0x7fff_ffff) > 0x7f80_0000;
        Self::from_bits(if is_nan { 0x7fc0 } else { rounded as u16 })
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Runs `$body` with `$type` standing for the operand type of kind `$kind`.
macro_rules! with_operand {
    ($kind:expr, $type:ident => $body:expr) => {
        match $kind {
            tch::Kind::BFloat16 => {
                type $type = half::bf16;
                $body
            }
            _ => {
                type $type = f32;
                $body
            }
        }
    };
}
pub(crate) use with_operand;

/// The elements of a contiguous host tensor of that type.
pub(crate) fn elements<T: Element>(tensor: &Tensor) -> &[T] {
    check(tensor, T::KIND);
    // SAFETY: a contiguous host tensor of this type, not written while the result is used: kernels write only into tensors that
    // they have made, or that the caller gives away for it.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The same, to be written.
pub(crate) fn elements_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    check(tensor, T::KIND);
    // SAFETY: as in `elements`; the handle is borrowed exclusively and kernels do not use two handles of one memory.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

fn check(tensor: &Tensor, kind: Kind) {
    let fits = tensor.kind() == kind && tensor.is_contiguous() && tensor.device() == tch::Device::Cpu;
    assert!(fits, "a kernel takes contiguous {kind:?} on the host, not {tensor:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_library_does() {
        let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        let many = (0..200_000u32).map(|i| f32::from_bits(i.wrapping_mul(21_474_836)));
        for value in special.into_iter().chain(many) {
            let (found, expected) = (<bf16 as Operand>::from_f32(value), bf16::from_f32(value));
            let alike = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
            assert!(alike, "{value}: {found} {expected}");
        }
        assert!(<bf16 as Operand>::from_f32(f32::NAN).is_nan());
        assert!(<bf16 as Operand>::from_f32(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
