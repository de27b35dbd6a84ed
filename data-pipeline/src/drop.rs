//! The ILM corruption: how many tokens of a row are dropped, and which, decided per (epoch, row) and nothing else.

use rand_chacha::rand_core::Rng;

use crate::random::{Purpose, keyed_rng, uniform_below};

/// What a sample's random draws may depend on, and where it stands in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey {
    /// Place in the global order (only reported, never drawn from).
    pub position: u64,
    /// How often the data set has been passed.
    pub epoch: u64,
    /// Row of the data set.
    pub row: u64,
}

/// Decides which tokens of a sample are dropped. Implementations must be pure.
pub trait Drops: Send + Sync {
    /// Sets `dropped[i]` for every token `i` that is dropped; all entries are false on entry.
    fn draw(&self, key: SampleKey, dropped: &mut [bool]);
}

/// The training distribution: k uniform in `0..=n`, then a uniform k-subset of the n tokens, so that each k has
/// probability 1/(n+1).
#[derive(Debug, Clone, Copy)]
pub struct KeyedDrops {
    seed: u64,
}

impl KeyedDrops {
    /// Draws keyed by the run's seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl Drops for KeyedDrops {
    fn draw(&self, key: SampleKey, dropped: &mut [bool]) {
        let mut rng = keyed_rng(self.seed, Purpose::Drop, key.epoch, key.row);
        let n = dropped.len();
        let count = uniform_below(&mut rng, n as u64 + 1) as usize;
        choose(&mut rng, count, dropped);
    }
}

/// Marks a uniform choice of `count` places, of which there must be so many; no place is marked on entry.
///
/// Floyd's algorithm: `count` draws, with the marks as the set.
pub(crate) fn choose(rng: &mut impl Rng, count: usize, chosen: &mut [bool]) {
    for upper in chosen.len() - count..chosen.len() {
        let candidate = uniform_below(rng, upper as u64 + 1) as usize;
        let place = if chosen[candidate] { upper } else { candidate };
        chosen[place] = true;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn draw(seed: u64, epoch: u64, row: u64, n: usize) -> Vec<bool> {
        let mut dropped = vec![false; n];
        KeyedDrops::new(seed).draw(SampleKey { position: row * 31, epoch, row }, &mut dropped);
        dropped
    }

    #[test]
    fn count_is_uniform_and_subsets_of_a_count_are_equally_likely() {
        let samples = 60_000;
        let mut by_count = [0f64; 6];
        let mut by_pair = BTreeMap::new();
        for row in 0..samples {
            let dropped = draw(5, 0, row, 5);
            let indices: Vec<usize> = (0..5).filter(|&i| dropped[i]).collect();
            by_count[indices.len()] += 1.0;
            if indices.len() == 2 {
                *by_pair.entry(indices).or_insert(0f64) += 1.0;
            }
        }
        let expected = samples as f64 / 6.0;
        let chi_square: f64 = by_count.iter().map(|c| (c - expected).powi(2) / expected).sum();
        assert!(chi_square < 20.5, "5 degrees of freedom, p = 0.001: {chi_square}");
        assert_eq!(by_pair.len(), 10);
        let expected = by_count[2] / 10.0;
        let chi_square: f64 = by_pair.values().map(|c| (c - expected).powi(2) / expected).sum();
        assert!(chi_square < 27.9, "9 degrees of freedom, p = 0.001: {chi_square}");
    }

    #[test]
    fn depends_on_seed_epoch_and_row_but_not_on_position() {
        let base = draw(1, 2, 3, 64);
        let mut elsewhere = vec![false; 64];
        KeyedDrops::new(1).draw(SampleKey { position: 12345, epoch: 2, row: 3 }, &mut elsewhere);
        assert_eq!(base, elsewhere);
        assert_ne!(base, draw(2, 2, 3, 64));
        assert_ne!(base, draw(1, 3, 3, 64));
        assert_ne!(base, draw(1, 2, 4, 64));
    }

    /// Runs are resumed by later versions: the draws must never change.
    #[test]
    fn values_are_pinned() {
        let indices = |row| (0..8).filter(|&i| draw(1, 2, row, 8)[i]).collect::<Vec<_>>();
        assert_eq!([indices(3), indices(4), indices(5)], [vec![0, 1, 2, 3, 4, 5, 7], vec![1, 3, 7], vec![7]]);
    }

    #[test]
    fn nothing_to_drop_is_fine() {
        assert!(draw(1, 0, 0, 0).is_empty());
    }
}
