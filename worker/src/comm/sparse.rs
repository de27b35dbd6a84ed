//! Chunks of gradients as they are sent: lines of zeros stay at home.
//!
//! Of the embedding's gradient only the rows of a step's tokens are not zero, and it is the last to be final, so that nothing
//! hides its way. What is sent instead is a bit per line of 64 bytes, and the lines that hold something.

/// Values of a line; the last line of a chunk may have fewer.
const LINE: usize = 16;
/// Lines whose bits are one word.
const GROUP: usize = u32::BITS as usize;
/// Lines that are looked at before all are: most chunks have no zeros, and shall cost next to nothing.
const SAMPLES: usize = 64;

/// Writes to `message` what adds `values` to a chunk of the same length, if that is at most half as long.
pub(super) fn pack(values: &[f32], message: &mut Vec<f32>) -> bool {
    let lines = values.len().div_ceil(LINE);
    let seldom = lines.div_ceil(SAMPLES).max(1);
    let full = values.chunks(LINE).step_by(seldom).filter(|line| holds_something(line)).count();
    if 2 * full > lines.div_ceil(seldom) {
        return false;
    }
    message.clear();
    message.resize(lines.div_ceil(GROUP), 0.0);
    for (group, lines) in values.chunks(GROUP * LINE).enumerate() {
        let mut bits = 0;
        for (bit, line) in lines.chunks(LINE).enumerate().filter(|(_, line)| holds_something(line)) {
            bits |= 1 << bit;
            message.extend_from_slice(line);
        }
        message[group] = f32::from_bits(bits);
        if 2 * message.len() > values.len() {
            return false;
        }
    }
    true
}

/// A negative zero is something: adding it is not the same as adding nothing to it.
fn holds_something(line: &[f32]) -> bool {
    line.iter().fold(0, |bits, value| bits | value.to_bits()) != 0
}

/// Adds what [`pack`] has packed, bit by bit what adding the whole would give; false if it is none of a chunk of this length.
pub(super) fn add(sums: &mut [f32], message: &[f32]) -> bool {
    let groups = sums.len().div_ceil(LINE).div_ceil(GROUP);
    let Some((bits, mut lines)) = message.split_at_checked(groups) else { return false };
    for (sums, bits) in sums.chunks_mut(GROUP * LINE).zip(bits) {
        for (bit, sums) in sums.chunks_mut(LINE).enumerate() {
            if bits.to_bits() >> bit & 1 == 0 {
                sums.iter_mut().for_each(|sum| *sum += 0.0);
                continue;
            }
            let Some((line, rest)) = lines.split_at_checked(sums.len()) else { return false };
            sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += value);
            lines = rest;
        }
    }
    lines.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Zeros of both signs, and now and then a run of something else.
    fn sparse(len: usize, runs: &[(usize, usize, f32)]) -> Vec<f32> {
        let mut values = vec![0.0; len];
        for &(start, length, value) in runs {
            values.iter_mut().skip(start).take(length).for_each(|place| *place = value);
        }
        values
    }

    fn runs(most: usize) -> impl Strategy<Value = Vec<(usize, usize, f32)>> {
        let value = prop_oneof![Just(-0.0), Just(f32::INFINITY), -1e3_f32..1e3];
        proptest::collection::vec((0_usize..40_000, 0_usize..400, value), 0..most)
    }

    proptest! {
        #[test]
        fn what_is_packed_adds_like_the_whole(len in 0_usize..40_000, theirs in runs(60), mine in runs(60)) {
            let theirs = sparse(len, &theirs);
            let mut sums = sparse(len, &mine);
            let mut expected = sums.clone();
            super::super::ring::add(&mut expected, &theirs);
            let mut message = vec![1.0; 7];
            if pack(&theirs, &mut message) {
                prop_assert!(2 * message.len() <= len);
                prop_assert!(add(&mut sums, &message));
                prop_assert_eq!(bits(&sums), bits(&expected));
            }
        }

        #[test]
        fn rows_of_an_embedding_are_packed(rows in proptest::collection::btree_set(0_usize..170, 0..20)) {
            const WIDTH: usize = 768;
            let runs: Vec<_> = rows.iter().map(|row| (row * WIDTH, WIDTH, 0.5)).collect();
            let mut message = Vec::new();
            prop_assert!(pack(&sparse(170 * WIDTH, &runs), &mut message));
            prop_assert_eq!(message.len(), 255 + rows.len() * WIDTH);
        }
    }

    #[test]
    fn what_is_of_another_chunk_is_noticed() {
        let mut message = Vec::new();
        assert!(pack(&sparse(5000, &[(700, 40, 1.0)]), &mut message));
        let mut sums = vec![0.0; 5000];
        assert!(!add(&mut sums, &message[..message.len() - 1]) && !add(&mut sums, &[]));
        message.push(1.0);
        assert!(!add(&mut sums, &message));
    }

    #[test]
    fn what_has_no_zeros_is_not_packed() {
        assert!(!pack(&[1.0; 5000], &mut Vec::new()));
        let half_and_half: Vec<f32> = (0..5120).map(|i| f32::from(i / 512 % 2 == 0)).collect();
        assert!(!pack(&half_and_half, &mut Vec::new()));
    }
}
