//! Dropout whose masks are pure functions of a seed and of the place in the model, with no generator state anywhere.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Zeroes each element with probability p (in steps of 2^-16) and scales the rest by 1/(1-p).
///
/// An element's fate depends on the seed, its row and its column only, so that a backward pass draws the mask anew instead
/// of keeping it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout {
    p: f64,
    seed: u64,
}

impl Dropout {
    /// No dropout; it costs nothing.
    pub(crate) const OFF: Self = Self { p: 0.0, seed: 0 };

    pub(crate) fn new(p: f64, seed: u64) -> Self {
        Self { p, seed: mix(seed) }
    }

    /// The dropout of one place: different places drop independently.
    pub(crate) fn site(self, place: u64) -> Self {
        Self { p: self.p, seed: mix(self.seed ^ mix(place)) }
    }

    pub(crate) fn is_off(self) -> bool {
        self.p == 0.0
    }

    /// What the elements of a row are multiplied with: 0 where one is dropped, 1/(1-p) where it is kept.
    #[inline(always)]
    pub(crate) fn factors(self, row: usize, out: &mut [f32]) {
        if self.is_off() {
            return out.fill(1.0);
        }
        const WORDS: usize = 16;
        let (threshold, kept) = (self.threshold() as u16, self.kept());
        let start = mix(self.seed.wrapping_add((row as u64).wrapping_mul(GOLDEN)));
        for (block, out) in out.chunks_mut(WORDS * LANES).enumerate() {
            let mut bits = [0u64; WORDS];
            for (word, bits) in bits.iter_mut().enumerate() {
                let counter = (block * WORDS + word) as u64;
                *bits = mix(start.wrapping_add(counter.wrapping_mul(GOLDEN)));
            }
            let lanes: &[u16; WORDS * LANES] = zerocopy::transmute_ref!(&bits);
            for (out, &lane) in out.iter_mut().zip(lanes) {
                *out = if lane < threshold { 0.0 } else { kept };
            }
        }
    }

    /// Drops in place. The gradient before a dropout is the dropout of that behind it.
    pub(crate) fn apply(self, mut x: Tensor) -> Result<Tensor> {
        match self.mask(&x.size(), x.device())? {
            Some(mask) => Ok(x.f_mul_(&mask)?),
            None => Ok(x),
        }
    }

    /// The factors of a whole tensor, whose last dimension is a row; none if nothing is dropped.
    pub(crate) fn mask(self, size: &[i64], device: Device) -> Result<Option<Tensor>> {
        let width = size.last().copied().unwrap_or(1);
        let rows = size.iter().product::<i64>() / width.max(1);
        let mask = self.mask_of_rows(&Tensor::f_arange(rows, (Kind::Int64, device))?, width)?;
        Ok(mask.map(|mask| mask.f_view(size)).transpose()?)
    }

    /// The factors of the rows with these numbers [R], [R, width]; none if nothing is dropped.
    pub(crate) fn mask_of_rows(self, rows: &Tensor, width: i64) -> Result<Option<Tensor>> {
        if self.is_off() {
            return Ok(None);
        }
        let words = (width as usize).div_ceil(LANES) as i64;
        let counters = Tensor::f_arange(words, (Kind::Int64, rows.device()))?.f_mul_scalar(GOLDEN as i64)?;
        let starts = mix_tensor(&rows.f_mul_scalar(GOLDEN as i64)?.f_add_scalar(self.seed as i64)?)?;
        let bits = mix_tensor(&starts.f_unsqueeze(1)?.f_add(&counters)?)?;
        let lanes: Vec<Tensor> = (0..LANES as i64)
            .map(|lane| Ok(bits.f_bitwise_right_shift_tensor_scalar(16 * lane)?.f_bitwise_and(0xffff)?))
            .collect::<Result<_>>()?;
        let lanes = Tensor::f_stack(&lanes, 2)?.f_view([-1, words * LANES as i64])?;
        let kept = lanes.f_narrow(1, 0, width)?.f_ge(self.threshold() as i64)?;
        Ok(Some(kept.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(self.kept()))?))
    }

    fn threshold(self) -> u64 {
        ((self.p * 65_536.0).round() as u64).min(0xffff)
    }

    fn kept(self) -> f32 {
        (1.0 - self.p).recip() as f32
    }
}

/// Elements decided by one 64-bit word.
const LANES: usize = 4;

/// 2^64 over the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const MULTIPLIERS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// SplitMix64's output function.
#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(MULTIPLIERS[0]);
    let value = (value ^ (value >> 27)).wrapping_mul(MULTIPLIERS[1]);
    value ^ (value >> 31)
}

/// [`mix`] of every element; libtorch's integers wrap, but its shifts keep the sign.
fn mix_tensor(values: &Tensor) -> Result<Tensor> {
    let shifted = |values: &Tensor, by: i64| {
        values.f_bitwise_right_shift_tensor_scalar(by)?.f_bitwise_and((1i64 << (64 - by)) - 1)
    };
    let values = values.f_add_scalar(GOLDEN as i64)?;
    let values = values.f_bitwise_xor_tensor(&shifted(&values, 30)?)?.f_mul_scalar(MULTIPLIERS[0] as i64)?;
    let values = values.f_bitwise_xor_tensor(&shifted(&values, 27)?)?.f_mul_scalar(MULTIPLIERS[1] as i64)?;
    Ok(values.f_bitwise_xor_tensor(&shifted(&values, 31)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dropout: Dropout, row: usize, width: usize) -> Vec<f32> {
        let mut values = vec![0.0; width];
        dropout.factors(row, &mut values);
        values
    }

    #[test]
    fn share_and_scale_of_kept_elements_follow_p() {
        let values = row(Dropout::new(0.1, 7), 0, 200_001);
        let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64 / 200_001.0;
        assert!((dropped - 0.1).abs() < 0.003, "{dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.9).abs() < 1e-6));
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / 200_001.0;
        assert!((mean - 1.0).abs() < 0.004, "{mean}");
    }

    #[test]
    fn masks_repeat_by_seed_and_place_and_are_independent_otherwise() {
        let base = row(Dropout::new(0.5, 7).site(1), 3, 4096);
        assert_eq!(base, row(Dropout::new(0.5, 7).site(1), 3, 4096));
        let others = [
            row(Dropout::new(0.5, 8).site(1), 3, 4096),
            row(Dropout::new(0.5, 7).site(2), 3, 4096),
            row(Dropout::new(0.5, 7), 3, 4096),
            row(Dropout::new(0.5, 7).site(1), 4, 4096),
        ];
        for other in others {
            let agree = other.iter().zip(&base).filter(|(a, b)| a == b).count();
            assert!((1850..2250).contains(&agree), "{agree} of 4096 agree");
        }
    }

    #[test]
    fn a_device_draws_the_same_mask() {
        for (rows, width) in [(5, 12), (7, 70), (3, 129)] {
            let dropout = Dropout::new(0.3, 11).site(4);
            let mask = dropout.mask(&[rows, width], Device::Cpu).unwrap().unwrap();
            let found: Vec<f32> = mask.view([-1]).try_into().unwrap();
            let expected: Vec<f32> =
                (0..rows as usize).flat_map(|at| row(dropout, at, width as usize)).collect();
            assert_eq!(found, expected, "{rows} {width}");
        }
    }

    #[test]
    fn switched_off_it_has_no_mask() {
        assert!(Dropout::OFF.site(3).mask(&[2, 2], Device::Cpu).unwrap().is_none());
        assert_eq!(row(Dropout::OFF, 0, 3), [1.0; 3]);
    }
}
