//! Element types: what is stored, as the 32 bits that a parameter has here.

use safetensors::Dtype;

/// A stored floating point type.
///
/// F32 keeps every bit; F16 and BF16 are exact; F64 is rounded to the nearest F32, ties to even, and a finite value
/// that would become infinite is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

/// An F64 beyond the range of F32.
#[derive(Debug, PartialEq)]
pub(crate) struct Unrepresentable {
    pub(crate) element: usize,
    pub(crate) value: f64,
}

impl Float {
    /// `None` for integers, booleans and types of eight bits or less.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F32 => Some(Self::F32),
            Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }

    /// Bytes per element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The largest relative error of rounding to this type, or to F32 if that is coarser.
    pub(crate) fn rounding(self) -> f32 {
        match self {
            Self::Bf16 => 1.0 / 256.0,
            Self::F16 => 1.0 / 2048.0,
            Self::F32 | Self::F64 => f32::EPSILON / 2.0,
        }
    }

    /// Decodes little-endian elements; `bytes` holds `out.len()` of them.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<(), Unrepresentable> {
        match self {
            Self::F16 => fill(bytes, out, |b| from_f16(u16::from_le_bytes(b))),
            Self::Bf16 => fill(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Self::F32 => fill(bytes, out, f32::from_le_bytes),
            Self::F64 => {
                fill(bytes, out, |b| f64::from_le_bytes(b) as f32);
                let stored = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
                let lost = stored.zip(&*out).position(|(value, got)| value.is_finite() && got.is_infinite());
                if let Some(element) = lost {
                    let value = bytes.as_chunks().0.get(element).map_or(f64::NAN, |b| f64::from_le_bytes(*b));
                    return Err(Unrepresentable { element, value });
                }
            }
        }
        Ok(())
    }
}

fn fill<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = decode(*bytes);
    }
}

/// One sign bit, five of exponent (biased by 15), ten of fraction.
fn from_f16(bits: u16) -> f32 {
    const SMALLEST: f32 = 1.0 / 16_777_216.0;
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => (fraction as f32 * SMALLEST).to_bits(),
        31 => 0xff << 23 | fraction << 13,
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(float: Float, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / float.size()];
        float.decode(bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn every_f16_is_the_number_that_its_fields_say() {
        for bits in 0..=u16::MAX {
            let got = decoded(Float::F16, &bits.to_le_bytes())[0];
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let magnitude = match exponent {
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                0 => fraction * 2f64.powi(-24),
                _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
            };
            assert_eq!(got.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
            assert!(f64::from(got.abs()) == magnitude || magnitude.is_nan() && got.is_nan(), "{bits:#06x}");
        }
    }

    #[test]
    fn bf16_and_f32_keep_their_bits() {
        for bits in 0..=u16::MAX {
            let got = decoded(Float::Bf16, &bits.to_le_bytes())[0];
            assert_eq!(got.to_bits(), u32::from(bits) << 16);
        }
        for bits in [0, 1, 0x8000_0000, 0x7fc0_0001, 0xff80_0000, 0x3f80_0001] {
            assert_eq!(decoded(Float::F32, &u32::to_le_bytes(bits))[0].to_bits(), bits);
        }
    }

    #[test]
    fn f64_is_rounded_to_even_and_may_not_overflow() {
        let half_ulp = 2f64.powi(-24);
        for (value, rounded) in [
            (0.1, 0.1f32),
            (1.0 + half_ulp, 1.0),
            (1.0 + 3.0 * half_ulp, 1.0 + 2.0 * f32::EPSILON),
            (f64::INFINITY, f32::INFINITY),
            (1e-60, 0.0),
        ] {
            assert_eq!(decoded(Float::F64, &value.to_le_bytes()), [rounded]);
        }
        assert!(decoded(Float::F64, &f64::NAN.to_le_bytes())[0].is_nan());
        let bytes = [1f64.to_le_bytes(), (-1e39f64).to_le_bytes()].concat();
        let refused = Float::F64.decode(&bytes, &mut [0.0; 2]);
        assert_eq!(refused, Err(Unrepresentable { element: 1, value: -1e39 }));
    }
}
