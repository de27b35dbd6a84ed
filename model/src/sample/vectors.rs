//! What is asked of every score of many, compiled for the vectors of this processor.

use multiversion::multiversion;

use super::ranking::score_of;
use crate::kernels::simd::{LANES, exp, max};

/// Entries of a long row whose weights are summed in f32.
pub(crate) const RUN: usize = 512;

/// The largest score; minus infinity of none, what is no number is passed over.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn largest(scores: &[f32]) -> f32 {
    max(scores)
}

/// Sum of e^(score - top) in f32; what is no number is passed over.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn sum_of_weights(scores: &[f32], top: f32) -> f32 {
    let weight = |score: f32| {
        let weight = exp(score - top);
        if weight.is_nan() { 0.0 } else { weight }
    };
    let mut sums = [0.0; LANES];
    let (groups, rest) = scores.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            sums[lane] += weight(group[lane]);
        }
    }
    for (sum, &score) in sums.iter_mut().zip(rest) {
        *sum += weight(score);
    }
    sums.iter().sum()
}

/// The same of the scores of keys, all of which are numbers; the sums of runs are added in f64.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn sum_of_key_weights(keys: &[u64], top: f32) -> f64 {
    let mut total = 0.0;
    for run in keys.chunks(RUN) {
        let mut sums = [0.0; LANES];
        let (groups, rest) = run.as_chunks::<LANES>();
        for group in groups {
            for lane in 0..LANES {
                sums[lane] += exp(score_of(group[lane]) - top);
            }
        }
        for (sum, &key) in sums.iter_mut().zip(rest) {
            *sum += exp(score_of(key) - top);
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((largest(&[]), sum_of_weights(&[], 0.0)), (f32::NEG_INFINITY, 0.0));
    }
}
