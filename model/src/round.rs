//! Rounding of parameters to the operands of products.

use half::bf16;

use crate::kernels::operand::Operand;

/// Rounds values to the nearest, ties to even, as the conversions of libtorch and of the processor do. What is longer than the other
/// is left as it is.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn round(rounded: &mut [bf16], values: &[f32]) {
    for (rounded, &value) in rounded.iter_mut().zip(values) {
        *rounded = <bf16 as Operand>::from_f32(value);
    }
}
