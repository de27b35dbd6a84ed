//! Random streams as pure functions of what they are for: no state is carried between calls.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a stream is drawn for; streams of different purposes never coincide.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Initial values of a parameter; keyed by its name.
    Init = 1,
    /// Choices of the predictor; keyed by example and step.
    Predict = 2,
}

/// The stream of (seed, purpose, a, b): the four numbers are the cipher's key.
pub(crate) fn keyed_rng(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// FNV-1a of a name.
pub(crate) fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Different uniform numbers.
pub(crate) const UNIFORM_STEPS: f64 = (1u32 << 24) as f64;

/// Uniform on [0, 1) in steps of 2^-24.
pub(crate) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    to_uniform(rng.next_u32())
}

/// The uniform number of a random word.
pub(crate) fn to_uniform(word: u32) -> f64 {
    f64::from(word >> 8) / UNIFORM_STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let first = |seed, purpose, a, b| keyed_rng(seed, purpose, a, b).next_u64();
        let base = first(1, Purpose::Predict, 2, 3);
        assert_eq!(base, first(1, Purpose::Predict, 2, 3));
        for other in [
            first(2, Purpose::Predict, 2, 3),
            first(1, Purpose::Init, 2, 3),
            first(1, Purpose::Predict, 3, 3),
            first(1, Purpose::Predict, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn names_hash_by_the_published_function() {
        assert_eq!(name_key(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_key("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
