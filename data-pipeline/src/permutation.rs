//! A keyed permutation of `0..n` without a table: every value is computed alone, in constant expected time.

const ROUNDS: usize = 6;

/// A Feistel network on the bits of `n - 1`, walked until the value falls below `n` (at most two walks on average,
/// since the network's domain is less than twice `n`).
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    left_bits: u32,
    right_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..n` for a key: a draw of [`keyed_rng`](crate::keyed_rng) or a [`subkey`] of one.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        let keys = std::array::from_fn(|round| subkey(key, round as u64));
        Self { n, left_bits: bits / 2, right_bits: bits - bits / 2, keys }
    }

    /// Where `index` goes; `index` must be below `n`, and so is the result.
    pub fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.n);
        if self.n <= 2 {
            // One bit cannot be halved: a swap decided by the key.
            return if self.n == 2 { index ^ (self.keys[0] & 1) } else { index };
        }
        let mut value = index;
        loop {
            value = self.network(value);
            if value < self.n {
                return value;
            }
        }
    }

    /// One pass of the network. The halves may differ by a bit and trade places each round; the even number of rounds
    /// brings them back.
    fn network(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value >> self.right_bits, value & mask(self.right_bits));
        let (mut left_bits, mut right_bits) = (self.left_bits, self.right_bits);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask(left_bits)));
            (left_bits, right_bits) = (right_bits, left_bits);
        }
        left << self.right_bits | right
    }
}

fn mask(bits: u32) -> u64 {
    (1u64 << bits) - 1
}

/// The key number `index` that follows from `key` (splitmix64's stream): cheap enough to be made for every lookup.
pub(crate) fn subkey(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add((index.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Finaliser of splitmix64: a bijection that spreads every input bit over the word.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: u64, seed: u64) -> Vec<u64> {
        let permutation = Permutation::new(n, seed);
        (0..n).map(|i| permutation.apply(i)).collect()
    }

    #[test]
    fn is_a_bijection_for_every_small_size_and_around_powers_of_two() {
        let large = [4095, 4096, 4097, 65_535, 65_536, 65_537, 100_003];
        for n in (1..=1500).chain(large) {
            let mut seen = vec![false; n as usize];
            for value in table(n, n ^ 5) {
                assert!(!std::mem::replace(&mut seen[value as usize], true), "n {n}: {value} twice");
            }
        }
    }

    #[test]
    fn works_at_the_ends_of_the_number_range() {
        let permutation = Permutation::new(u64::MAX, 1);
        assert!(permutation.apply(u64::MAX - 1) < u64::MAX);
        assert_eq!(Permutation::new(1, 1).apply(0), 0);
    }

    #[test]
    fn images_are_uniform_over_seeds() {
        // Where index 3 of 20 lands, and how far apart the images of neighbours are: both uniform.
        for n in [5u64, 20, 33] {
            let mut place = vec![0f64; n as usize];
            let mut gap = vec![0f64; n as usize];
            let seeds = 2000 * n;
            for seed in 0..seeds {
                let permutation = Permutation::new(n, subkey(5, seed));
                let (a, b) = (permutation.apply(3), permutation.apply(4));
                place[a as usize] += 1.0;
                gap[((b + n - a) % n) as usize] += 1.0;
            }
            // Mean d, deviation sqrt(2d): five deviations above the mean.
            let bound = |d: f64| d + 5.0 * (2.0 * d).sqrt();
            let chi_square: f64 = place.iter().map(|c| (c - 2000.0).powi(2) / 2000.0).sum();
            assert!(chi_square < bound(n as f64 - 1.0), "n {n}: {chi_square}");
            assert_eq!(gap[0], 0.0);
            let expected = seeds as f64 / (n as f64 - 1.0);
            let chi_square: f64 = gap[1..].iter().map(|c| (c - expected).powi(2) / expected).sum();
            assert!(chi_square < bound(n as f64 - 2.0), "gaps of n {n}: {chi_square}");
        }
    }
}
