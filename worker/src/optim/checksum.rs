//! A checksum of a flat buffer's bits in one pass on all threads.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{Immutable, IntoBytes};

use super::parallel::{self, CHUNK};

/// The hash of the hashes of fixed chunks, which does not depend on the number of threads.
pub fn checksum<T: IntoBytes + Immutable + Sync>(values: &[T]) -> u64 {
    let hashes = parallel::map(values.chunks(CHUNK).collect(), |chunk: &[T]| xxh3_64(chunk.as_bytes()));
    xxh3_64(hashes.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_element_counts() {
        let mut values = vec![1.0_f32; 2 * CHUNK + 5];
        let whole = checksum(&values);
        assert_eq!(whole, checksum(&values.clone()));
        for place in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4] {
            values[place] = f32::from_bits(1.0_f32.to_bits() ^ 1);
            assert_ne!(checksum(&values), whole, "element {place}");
            values[place] = 1.0;
        }
        values.swap(0, 1);
        assert_eq!(checksum(&values), whole);
        values[0] = -0.0;
        let zero = checksum(&values);
        values[0] = 0.0;
        assert_ne!(checksum(&values), zero, "bits count, not values");
        assert_ne!(checksum(&values[1..]), checksum(&values[..values.len() - 1]));
    }
}
