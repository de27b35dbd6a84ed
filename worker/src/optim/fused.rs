//! The update of one chunk in host memory, in a single pass: every array is read and written once.
//!
//! Only operations whose result is exactly defined are used, element by element, so all instruction sets give the same bits.

use half::bf16;
use ilm_model::round;

use super::adamw::Coefficients;

/// Elements that stay in the first cache from the update to the average and the rounding.
const BLOCK: usize = 1 << 11;

/// Equally long slices of all arrays that an update reads or writes.
pub(super) struct Chunk<'a> {
    pub(super) coefficients: Coefficients,
    pub(super) params: &'a mut [f32],
    pub(super) grads: &'a [f32],
    pub(super) exp_avg: &'a mut [f32],
    pub(super) exp_avg_sq: &'a mut [f32],
    /// The moving average, if one is kept.
    pub(super) average: Option<&'a mut [f32]>,
    /// The parameters rounded, if products need them.
    pub(super) rounded: Option<&'a mut [bf16]>,
}

impl Chunk<'_> {
    pub(super) fn update(mut self) {
        let c = self.coefficients;
        for start in (0..self.params.len()).step_by(BLOCK) {
            let block = start..self.params.len().min(start + BLOCK);
            let params = &mut self.params[block.clone()];
            let moments = (&mut self.exp_avg[block.clone()], &mut self.exp_avg_sq[block.clone()]);
            adamw(&c, params, &self.grads[block.clone()], moments.0, moments.1);
            if let Some(average) = &mut self.average {
                approach(&mut average[block.clone()], params, c.average_weight);
            }
            if let Some(rounded) = &mut self.rounded {
                round(&mut rounded[block], params);
            }
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn adamw(c: &Coefficients, params: &mut [f32], grads: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
    for (((p, g), m), v) in params.iter_mut().zip(grads).zip(exp_avg).zip(exp_avg_sq) {
        let g = g * c.grad_scale;
        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
        *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
        *p = *p * c.keep - c.step_size * *m / (v.sqrt() * c.inverse_sqrt_correction2 + c.eps);
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn approach(average: &mut [f32], params: &[f32], weight: f32) {
    for (average, p) in average.iter_mut().zip(params) {
        *average -= weight * (*average - p);
    }
}

/// The sum of squares, in f64. Eight running sums per lane group are added in a fixed order.
#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 32;
    let mut sums = [0f64; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_even() {
        let mut values: Vec<f32> = (0..1 << 16).map(|i| f32::from_bits(i * 65_521)).collect();
        values.extend([
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            1.0,
            f32::from_bits(0x3f80_8000),
        ]);
        let mut rounded = vec![bf16::ZERO; values.len()];
        round(&mut rounded, &values);
        for (value, rounded) in values.iter().zip(rounded) {
            let expected = bf16::from_f32(*value);
            assert!(
                rounded.to_bits() == expected.to_bits() || (rounded.is_nan() && expected.is_nan()),
                "{value}: {rounded} {expected}"
            );
        }
    }

    #[test]
    fn every_element_counts_in_the_sum_of_squares() {
        for len in [0, 1, 31, 32, 33, 1000] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f64 = (0..len).map(|i| (i * i) as f64).sum();
            assert_eq!(sum_of_squares(&values), expected);
        }
    }
}
