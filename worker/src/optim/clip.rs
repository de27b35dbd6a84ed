//! Clipping by the global norm of the gradient.

use rayon::prelude::*;

use super::CHUNK;

/// Euclidean norm. Partial sums are taken per fixed chunk and added in order, so the bits do not depend on threads.
pub fn norm(values: &[f32]) -> f64 {
    let partial: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
    partial.iter().sum::<f64>().sqrt()
}

fn sum_of_squares(chunk: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (groups, rest) = chunk.as_chunks::<LANES>();
    for group in groups {
        for (sum, &value) in sums.iter_mut().zip(group) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    sums.iter().sum::<f64>() + rest
}

/// What to multiply a gradient of this norm with: `min(1, max_norm / (norm + 1e-6))`, as torch does.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_counts_every_element() {
        let values = vec![0.5f32; 3 * CHUNK + 13];
        let expected = (0.25 * values.len() as f64).sqrt();
        assert!((norm(&values) - expected).abs() < 1e-9);
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
        assert_eq!(norm(&[]), 0.0);
    }

    #[test]
    fn only_long_gradients_are_shortened() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(10.0, 1.0) - 0.1).abs() < 1e-7);
    }
}
