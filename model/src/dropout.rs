//! Dropout whose masks are pure functions of a seed and of the place in the model, with no generator state anywhere.

/// Zeroes each element with probability p (on the host in steps of 2^-16) and scales the rest by 1/(1-p).
///
/// An element's fate depends on the seed, its row and its column only, so that a backward pass draws the mask anew instead
/// of keeping it. So it is on the host, whose masks are drawn here. Those of other devices ([`crate::ops::dropout`]) depend on the
/// seed, the shape of the whole tensor and the model of the device.
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

    pub(crate) fn p(self) -> f64 {
        self.p
    }

    /// What a generator starts from to draw the whole mask of the place.
    pub(crate) fn seed(self) -> u64 {
        self.seed
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
    fn switched_off_it_keeps_all() {
        assert!(Dropout::OFF.site(3).is_off());
        assert_eq!(row(Dropout::OFF, 0, 3), [1.0; 3]);
    }
}
