//! Dropout whose masks are pure functions of a seed and of the place in the model, with no generator state anywhere.

use tch::Tensor;

use crate::error::Result;

/// Zeroes each element with probability p (in steps of 2^-16) and scales the rest by 1/(1-p).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout {
    p: f64,
    seed: u64,
}

/// What one dropout kept: [`None`] inside if nothing could be dropped.
#[derive(Debug)]
pub(crate) struct Mask(Option<Tensor>);

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

    /// Drops in place.
    pub(crate) fn apply(self, mut x: Tensor) -> Result<(Tensor, Mask)> {
        if self.is_off() {
            return Ok((x, Mask(None)));
        }
        let mask = self.mask(&x.size())?;
        let x = x.f_mul_(&mask)?;
        Ok((x, Mask(Some(mask))))
    }

    /// 0 where an element is dropped, 1/(1-p) where it is kept.
    pub(crate) fn mask(self, shape: &[i64]) -> Result<Tensor> {
        let kept = (1.0 - self.p).recip() as f32;
        let threshold = (self.p * 65_536.0).round() as u64;
        let count = shape.iter().product::<i64>() as usize;
        let mut values = Vec::with_capacity(count + LANES);
        for word in 0..count.div_ceil(LANES) as u64 {
            let bits = mix(self.seed.wrapping_add(word.wrapping_mul(GOLDEN)));
            let lane = |index: u64| if (bits >> (16 * index)) & 0xffff < threshold { 0.0 } else { kept };
            values.extend([lane(0), lane(1), lane(2), lane(3)]);
        }
        Ok(Tensor::f_from_slice(&values[..count])?.f_view(shape)?)
    }
}

impl Mask {
    /// Where nothing is ever dropped.
    pub(crate) const NONE: Self = Self(None);

    /// Gradient before the dropout, given that behind it.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        Ok(match &self.0 {
            Some(mask) => grad.f_mul(mask)?,
            None => grad.shallow_clone(),
        })
    }
}

/// Elements decided by one 64-bit word.
const LANES: usize = 4;

/// 2^64 over the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::to_floats;

    fn mask(dropout: Dropout, count: i64) -> Vec<f32> {
        to_floats(&dropout.mask(&[count]).unwrap()).unwrap()
    }

    #[test]
    fn share_and_scale_of_kept_elements_follow_p() {
        let values = mask(Dropout::new(0.1, 7), 200_001);
        let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64 / 200_001.0;
        assert!((dropped - 0.1).abs() < 0.003, "{dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.9).abs() < 1e-6));
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / 200_001.0;
        assert!((mean - 1.0).abs() < 0.004, "{mean}");
    }

    #[test]
    fn masks_repeat_by_seed_and_place_and_are_independent_otherwise() {
        let base = mask(Dropout::new(0.5, 7).site(1), 4096);
        assert_eq!(base, mask(Dropout::new(0.5, 7).site(1), 4096));
        for other in [Dropout::new(0.5, 8).site(1), Dropout::new(0.5, 7).site(2), Dropout::new(0.5, 7)] {
            let agree = mask(other, 4096).iter().zip(&base).filter(|(a, b)| a == b).count();
            assert!((1850..2250).contains(&agree), "{agree} of 4096 agree");
        }
    }

    #[test]
    fn switched_off_it_passes_values_and_gradients_through() {
        let x = Tensor::from_slice(&[1f32, 2.0]);
        let (out, mask) = Dropout::OFF.site(3).apply(x.shallow_clone()).unwrap();
        assert_eq!(out.data_ptr(), x.data_ptr());
        assert_eq!(mask.backward(&x).unwrap().data_ptr(), x.data_ptr());
    }
}
