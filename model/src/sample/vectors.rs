//! What is asked of every score of many, compiled for the vectors of this processor.

use std::f32::consts::LOG2_E;

use multiversion::multiversion;

use super::ranking::score_of;
use crate::kernels::simd::{LANES, max};

/// Entries of a long row whose weights are summed in f32.
pub(super) const RUN: usize = 512;

/// The largest score; minus infinity of none, what is no number is passed over.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn largest(scores: &[f32]) -> f32 {
    max(scores)
}

/// The largest word.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn most(words: &[u32]) -> u32 {
    words.iter().copied().fold(0, u32::max)
}

/// Sum of e^(score - top) in f32; what is no number is passed over. Weights from 2^-125 to 2^126 are exact to rounding, those beyond
/// count as these.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(crate) fn sum_of_weights(scores: &[f32], top: f32) -> f32 {
    let base = top * LOG2_E;
    let mut sums = [0.0; LANES];
    let (groups, rest) = scores.as_chunks::<LANES>();
    for group in groups {
        for (sum, &score) in sums.iter_mut().zip(group) {
            *sum += power_of_two(score.mul_add(LOG2_E, -base));
        }
    }
    for (sum, &score) in sums.iter_mut().zip(rest) {
        *sum += power_of_two(score.mul_add(LOG2_E, -base));
    }
    sums.iter().sum()
}

/// The same of the scores of keys, all of which are numbers; the sums of runs are added in f64.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn sum_of_key_weights(keys: &[u64], top: f32) -> f64 {
    let base = top * LOG2_E;
    let mut total = 0.0;
    for run in keys.chunks(RUN) {
        let mut sums = [0.0; LANES];
        let (groups, rest) = run.as_chunks::<LANES>();
        for group in groups {
            for (sum, &key) in sums.iter_mut().zip(group) {
                *sum += power_of_two(score_of(key).mul_add(LOG2_E, -base));
            }
        }
        for (sum, &key) in sums.iter_mut().zip(rest) {
            *sum += power_of_two(score_of(key).mul_add(LOG2_E, -base));
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

/// 2 to the x within 2 units in the last place for x from -125 to 126; what is beyond counts as these, no number as the least.
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    const LEAST: f32 = -125.0;
    const MOST: f32 = 126.0;
    // Adding it leaves a whole number in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    let x = if x > LEAST { x } else { LEAST };
    let x = if x < MOST { x } else { MOST };
    let shifted = x + SHIFT;
    let rest = x - (shifted - SHIFT);
    // Cephes' polynomial for 2^r on |r| <= 1/2
    let mut poly: f32 = 1.535_336_2e-4;
    for coefficient in
        [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, std::f32::consts::LN_2, 1.0]
    {
        poly = poly.mul_add(rest, coefficient);
    }
    f32::from_bits(poly.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::ranking::key_of;

    #[test]
    fn powers_are_close_to_exact() {
        for step in -125 * 1024..=126 * 1024 {
            let x = step as f32 / 1024.0;
            let (found, expected) = (f64::from(power_of_two(x)), f64::from(x).exp2());
            assert!((found - expected).abs() <= 3e-7 * expected, "{x}: {found} {expected}");
        }
        assert_eq!([0.0, 127.0, 1e9].map(power_of_two), [1.0, 126f32.exp2(), 126f32.exp2()]);
        for lost in [-126.0, f32::MIN, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(power_of_two(lost), 125f32.exp2().recip());
        }
    }

    #[test]
    fn what_is_no_number_is_passed_over() {
        let mut scores: Vec<f32> = (0..100).map(|at| (at as f32 * 0.7).sin()).collect();
        scores[17] = f32::NAN;
        scores[50] = f32::NEG_INFINITY;
        let numbers = || scores.iter().copied().filter(|score| !score.is_nan());
        let top = largest(&scores);
        assert_eq!(Some(top), numbers().reduce(f32::max));
        let expected: f64 = numbers().map(|score| f64::from(score - top).exp()).sum();
        assert!((f64::from(sum_of_weights(&scores, top)) - expected).abs() < 1e-4);
        let keys: Vec<u64> = scores
            .iter()
            .enumerate()
            .filter(|(_, score)| !score.is_nan())
            .map(|(index, &score)| key_of(score, index))
            .collect();
        assert!((sum_of_key_weights(&keys, top) - expected).abs() < 1e-4);
        assert_eq!((largest(&[]), sum_of_weights(&[], 0.0)), (f32::NEG_INFINITY, 0.0));
    }
}
