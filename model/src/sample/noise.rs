//! Gumbel noise by its place in a stream: what cannot win is never drawn.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{gumbel, largest, most};
use crate::random::{UNIFORM_STEPS, to_uniform};

/// Words that are drawn together: what the generator makes at once.
const BLOCK: u64 = 64;

/// A stream of uniform numbers, one a word, read anywhere.
pub(crate) struct Noise {
    rng: ChaCha8Rng,
    words: [u32; BLOCK as usize],
    /// Which block `words` is.
    block: Option<u64>,
}

/// The largest sum of score and noise so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Leader {
    pub(crate) value: f64,
    /// Place of the entry among all.
    pub(crate) place: u64,
}

impl Noise {
    pub(crate) fn new(rng: ChaCha8Rng) -> Self {
        Self { rng, words: [0; BLOCK as usize], block: None }
    }

    fn words(&mut self, block: u64) -> &[u32; BLOCK as usize] {
        if self.block != Some(block) {
            let mut bytes = [0; 4 * BLOCK as usize];
            self.rng.set_word_pos(u128::from(block * BLOCK));
            self.rng.fill_bytes(&mut bytes);
            for (word, bytes) in self.words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            self.block = Some(block);
        }
        &self.words
    }

    /// Lets entries compete with the leader; that of score `i` has the place and the number `first + i`.
    ///
    /// The largest sum wins, of equals the first, in whatever order they come. Noise is bounded, so an entry that could win needs
    /// a large enough uniform number, and if their largest score has no chance, none of them has.
    pub(crate) fn compete(&mut self, first: u64, scores: &[f32], leader: &mut Option<Leader>) {
        let top = largest(scores);
        let mut done = 0;
        while done < scores.len() && top > f32::NEG_INFINITY {
            let least = match *leader {
                None => 0,
                Some(leader) => match least_word(leader.value - f64::from(top)) {
                    Some(least) => least,
                    None => return,
                },
            };
            done += self.compete_until_won(first + done as u64, &scores[done..], least, leader);
        }
    }

    /// Goes on from block to block up to one with a new leader, with words of at least `least`; the number of scores passed.
    fn compete_until_won(
        &mut self,
        first: u64,
        scores: &[f32],
        least: u32,
        leader: &mut Option<Leader>,
    ) -> usize {
        let (before, mut done) = (*leader, 0);
        while done < scores.len() && *leader == before {
            let place = first + done as u64;
            let start = (place % BLOCK) as usize;
            let part = &scores[done..scores.len().min(done + BLOCK as usize - start)];
            let words = &self.words(place / BLOCK)[start..][..part.len()];
            if most(words) >= least {
                for (place, (&word, &score)) in (place..).zip(words.iter().zip(part)) {
                    if word >= least && score > f32::NEG_INFINITY {
                        let value = f64::from(score) + gumbel(to_uniform(word));
                        *leader = better(*leader, Some(Leader { value, place }));
                    }
                }
            }
            done += part.len();
        }
        done
    }
}

/// No word below this gives noise of at least `wanted`; none if no word does.
fn least_word(wanted: f64) -> Option<u32> {
    /// The noise of the largest uniform number is 16.64.
    const MOST: f64 = 16.7;
    if wanted > MOST {
        return None;
    }
    // the inverse of the noise, one step of the uniform numbers lower, which is far more than rounding can amount to
    let uniform = (1e-10 - (-wanted).exp()).exp() - 1e-10;
    let steps = (uniform * UNIFORM_STEPS).floor() - 1.0;
    Some((steps.max(0.0) as u32) << 8)
}

/// The better of two leaders, as if their entries had competed in order.
pub(crate) fn better(one: Option<Leader>, other: Option<Leader>) -> Option<Leader> {
    match (one, other) {
        (Some(a), Some(b)) if b.value > a.value || (b.value == a.value && b.place < a.place) => Some(b),
        (None, b) => b,
        (a, _) => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, keyed_rng, uniform};
    use proptest::prelude::*;

    #[test]
    fn no_word_below_the_least_is_noisy_enough() {
        for step in 0..3600 {
            let wanted = f64::from(step) * 0.01 - 20.0;
            let least = least_word(wanted).unwrap();
            assert!(least == 0 || gumbel(to_uniform(least - 1)) < wanted, "{wanted}");
            // nor is much more drawn than needed
            let enough = least.saturating_add(3 << 8);
            assert!(enough == u32::MAX || gumbel(to_uniform(enough)) >= wanted, "{wanted}");
        }
        assert!(gumbel(to_uniform(u32::MAX)) < 16.7 && least_word(16.71).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_winner_is_that_of_comparing_everything(
            scores in prop::collection::vec(
                prop_oneof![8 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(29.0)], 0..700),
            spread in prop::sample::select(vec![0.01f32, 1.0]),
            first in 0u64..200,
            cut in 0usize..700,
            seed in any::<u64>(),
        ) {
            let scores: Vec<f32> = scores.iter().map(|&score| score * spread).collect();
            let stream = || keyed_rng(seed, Purpose::Predict, 5, 6);
            let mut rng = stream();
            (0..first).for_each(|_| { uniform(&mut rng); });
            let expected = crate::sample::sample(&scores, || uniform(&mut rng)).map(|index| first + index as u64);

            let cut = cut.min(scores.len());
            let mut noise = Noise::new(stream());
            let (mut left, mut right, mut whole) = (None, None, None);
            noise.compete(first + cut as u64, &scores[cut..], &mut right);
            noise.compete(first, &scores[..cut], &mut left);
            noise.compete(first, &scores, &mut whole);
            prop_assert_eq!(whole.map(|leader| leader.place), expected);
            prop_assert_eq!(better(left, right), whole);
            prop_assert_eq!(better(right, left), whole);
        }
    }
}
