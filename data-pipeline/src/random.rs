//! Randomness is a pure function: every draw comes from a stream named by (seed, purpose, two counters), never from who asks or when.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What a stream of random numbers is for; streams of different purposes never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Which tokens of a row are dropped; counters: epoch, row.
    Drop = 1,
    /// Order of the row groups; counters: epoch, source.
    GroupOrder = 2,
    /// Order of the rows of the windows; counters: epoch, source.
    WindowOrder = 3,
    /// A generated star graph; counters: split, row.
    Star = 4,
    /// Spans of a row that are dropped for infilling; counters: epoch, row.
    Spans = 7,
    /// Which rows of the training split are held out for validation; counters: 0.
    HoldOut = 8,
}

/// The stream for `(seed, purpose, a, b)`.
///
/// The 32-byte ChaCha8 key is the four words in little-endian order, so distinct names give independent streams, and
/// the numbers stay the same on every platform and in every version of this crate (a test pins them).
pub fn keyed_rng(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A uniform integer in `0..n` (0 for `n` = 0), without bias: the high word of a product, redrawn in the uneven rest.
pub fn uniform_below(rng: &mut impl Rng, n: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        // The rest is below n, so hardly any draw needs the slow division.
        if (product as u64) >= n || (product as u64) >= n.wrapping_neg() % n {
            return (product >> 64) as u64;
        }
    }
}

/// Shuffles `items` uniformly (Fisher-Yates from the end).
pub fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let other = uniform_below(rng, last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned() {
        let mut rng = keyed_rng(1, Purpose::Drop, 2, 3);
        assert_eq!(
            [rng.next_u64(), rng.next_u64()],
            [14_483_171_256_779_454_040, 14_042_188_402_261_770_878]
        );
        let mut rng = keyed_rng(1, Purpose::Star, 0, 0);
        let drawn: Vec<u64> = (0..8).map(|_| uniform_below(&mut rng, 10)).collect();
        assert_eq!(drawn, [6, 8, 9, 6, 0, 7, 7, 2]);
    }

    #[test]
    fn every_word_of_the_name_matters() {
        let first = |seed, purpose, a, b| keyed_rng(seed, purpose, a, b).next_u64();
        let base = first(1, Purpose::Drop, 2, 3);
        assert_eq!(base, first(1, Purpose::Drop, 2, 3));
        for other in [
            first(2, Purpose::Drop, 2, 3),
            first(1, Purpose::Star, 2, 3),
            first(1, Purpose::Drop, 3, 3),
            first(1, Purpose::Drop, 2, 4),
            first(1, Purpose::Drop, 3, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_are_uniform_and_in_range() {
        let mut rng = keyed_rng(7, Purpose::Drop, 0, 0);
        assert_eq!(uniform_below(&mut rng, 0), 0);
        assert_eq!(uniform_below(&mut rng, 1), 0);
        let mut counts = [0f64; 7];
        for _ in 0..70_000 {
            counts[uniform_below(&mut rng, 7) as usize] += 1.0;
        }
        let chi_square: f64 = counts.iter().map(|c| (c - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi_square < 22.5, "6 degrees of freedom, p = 0.001: {chi_square}");
        assert!((0..100).all(|_| uniform_below(&mut rng, u64::MAX) < u64::MAX));
    }

    #[test]
    fn shuffle_reaches_every_order_evenly() {
        let mut rng = keyed_rng(3, Purpose::Star, 0, 0);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut rng, &mut items);
            *counts.entry(items).or_insert(0f64) += 1.0;
        }
        assert_eq!(counts.len(), 24);
        let chi_square: f64 = counts.values().map(|c| (c - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 49.7, "23 degrees of freedom, p = 0.001: {chi_square}");
    }
}
