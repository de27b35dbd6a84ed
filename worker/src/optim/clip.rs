//! Clipping by the global norm of the gradient.

use ilm_model::{Error, Flat};

use super::device;
use super::fused;
use super::parallel::{self, CHUNK};
use super::parts::Parts;

/// The sum of squares of `parts` of a flat buffer. Partial sums are taken per fixed chunk and added in order, so the bits do
/// not depend on threads.
///
/// # Errors
/// A device fails.
pub fn squared_norm(values: &Flat<f32>, parts: &Parts) -> Result<f64, Error> {
    let Some(values) = values.host() else {
        return device::sum_of_squares(values, parts.iter().map(|part| part.arena));
    };
    let chunks: Vec<&[f32]> = parts.iter().flat_map(|part| values[part.arena].chunks(CHUNK)).collect();
    Ok(parallel::map(chunks, fused::sum_of_squares).iter().sum())
}

/// What to multiply a gradient of this norm with: `min(1, max_norm / (norm + 1e-6))`, as torch does.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_norm_counts_every_element_of_the_parts_and_no_other() {
        const LEN: usize = 3 * CHUNK + 13;
        let mut values = Flat::<f32>::zeros(LEN, Device::Cpu).unwrap();
        values.host_mut().unwrap().fill(0.5);
        assert_eq!(squared_norm(&values, &Parts::whole(LEN)).unwrap(), 0.25 * LEN as f64);
        let parts = Parts::new(LEN, [1..4, CHUNK..3 * CHUNK]);
        assert_eq!(squared_norm(&values, &parts).unwrap(), 0.25 * (3 + 2 * CHUNK) as f64);
        let by_tensors = device::sum_of_squares(&values, parts.iter().map(|part| part.arena)).unwrap();
        assert_eq!(by_tensors, 0.25 * (3 + 2 * CHUNK) as f64);
        assert_eq!(squared_norm(&values, &Parts::whole(0)).unwrap(), 0.0);
    }

    #[test]
    fn only_long_gradients_are_shortened() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(10.0, 1.0) - 0.1).abs() < 1e-7);
    }
}
