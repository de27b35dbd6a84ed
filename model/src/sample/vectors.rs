//! What is asked of every score of many, compiled for the vectors of this processor.

use multiversion::multiversion;

use crate::kernels::simd::{LANES, exp, max};

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
