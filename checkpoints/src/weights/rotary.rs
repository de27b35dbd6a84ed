//! The inverse frequencies that the reference keeps as a buffer.

/// Base of the geometric sequence of frequencies.
const BASE: f32 = 10_000.0;

/// `1 / 10000^(2i/R)` for `i` in `0..R/2`, computed in f32 step by step as the reference does; the power may differ
/// from its library's in the last bit.
pub fn inverse_frequencies(rotary_emb_dim: u64) -> Vec<f32> {
    (0..count(rotary_emb_dim)).map(|i| inverse_frequency(i, rotary_emb_dim)).collect()
}

/// How many there are.
pub(crate) fn count(rotary_emb_dim: u64) -> u64 {
    rotary_emb_dim.div_ceil(2)
}

pub(crate) fn inverse_frequency(i: u64, rotary_emb_dim: u64) -> f32 {
    1.0 / BASE.powf((2 * i) as f32 / rotary_emb_dim as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_to_almost_the_inverse_base() {
        assert_eq!(inverse_frequencies(4), [1.0, 0.01]);
        assert_eq!(inverse_frequencies(0), [0f32; 0]);
        for (i, value) in inverse_frequencies(64).into_iter().enumerate() {
            let exact = 10_000f64.powf(-(i as f64) / 32.0);
            assert!((f64::from(value) / exact - 1.0).abs() < 1e-6);
        }
    }
}
