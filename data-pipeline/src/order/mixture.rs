//! Which source a position of a mixture takes its sample from: by a table of one period, so in constant time and exact
//! at every position.

use crate::error::{Error, Result};

/// Positions of a period: shares that are given to four digits are met exactly.
pub(super) const PERIOD: u64 = 10_000;

/// The turns of the sources.
///
/// At every position p each source has had its count * p / PERIOD samples, rounded up or down.
#[derive(Debug)]
pub(super) struct Mixture {
    /// Turns of each source in a period.
    counts: Vec<u64>,
    /// For each position of a period: the source, and how many turns it had in the period before.
    turns: Vec<(u32, u32)>,
}

impl Mixture {
    /// Shares in proportion to the weights; every source has at least one turn in a period.
    ///
    /// # Errors
    /// [`Error::Setting`] when a weight is not a positive number or there are too many sources.
    pub fn new(weights: &[f64]) -> Result<Self> {
        if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
            return Err(Error::Setting(format!(
                "data.mixture has the weight {weight}; weights are positive numbers (leave out what is not wanted)"
            )));
        }
        if weights.len() as u64 > PERIOD {
            return Err(Error::Setting(format!("data.mixture has more than {PERIOD} entries; join some")));
        }
        let counts = counts(weights);
        Ok(Self { turns: turns(&counts), counts })
    }

    /// The source at a position, and which sample of that source it is.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let (source, before) = self.turns[(position % PERIOD) as usize];
        let source = source as usize;
        (source, position / PERIOD * self.counts[source] + u64::from(before))
    }

    /// Samples that a source has given before a position.
    pub fn samples(&self, source: usize, position: u64) -> u64 {
        let turns = &self.turns[..(position % PERIOD) as usize];
        let in_period = turns.iter().filter(|turn| turn.0 as usize == source).count();
        position / PERIOD * self.counts[source] + in_period as u64
    }
}

/// Turns of a period by largest remainder, none below one.
fn counts(weights: &[f64]) -> Vec<u64> {
    // Divided first, so that the sum of huge weights stays finite.
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
    let wanted: Vec<f64> = weights.iter().map(|weight| weight / largest / sum * PERIOD as f64).collect();
    let mut counts: Vec<u64> = wanted.iter().map(|&turns| (turns as u64).max(1)).collect();
    loop {
        let by_lack = |a: &usize, b: &usize| {
            let lack = |source: usize| wanted[source] - counts[source] as f64;
            lack(*a).total_cmp(&lack(*b)).then(b.cmp(a))
        };
        let given: u64 = counts.iter().sum();
        let next = if given < PERIOD {
            (0..counts.len()).max_by(by_lack)
        } else {
            (0..counts.len()).filter(|&source| given > PERIOD && counts[source] > 1).min_by(by_lack)
        };
        match next {
            Some(source) if given < PERIOD => counts[source] += 1,
            Some(source) => counts[source] -= 1,
            None => return counts,
        }
    }
}

/// The quota method of Balinski and Young: of the sources whose rounded-up share is not reached yet, the one that must
/// come first. It keeps every source within its share rounded down and up, which largest deficit first does not.
fn turns(counts: &[u64]) -> Vec<(u32, u32)> {
    let mut had = vec![0u64; counts.len()];
    let mut turns = Vec::with_capacity(PERIOD as usize);
    for turn in 1..=PERIOD {
        let open = (0..counts.len()).filter(|&source| had[source] * PERIOD < counts[source] * turn);
        // One is always open, since fewer turns were had than are due. Earliest (had + 1) / count, without division.
        let next = open.min_by(|&a, &b| ((had[a] + 1) * counts[b]).cmp(&((had[b] + 1) * counts[a])));
        let Some(next) = next else { break };
        turns.push((next as u32, had[next] as u32));
        had[next] += 1;
    }
    turns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_position_has_each_share_rounded_up_or_down(
            weights in prop::collection::vec(0.001f64..1000.0, 1..12), later in 0u64..1000,
        ) {
            let mixture = Mixture::new(&weights).unwrap();
            prop_assert_eq!(mixture.counts.iter().sum::<u64>(), PERIOD);
            let mut had = vec![later * PERIOD; weights.len()];
            for (source, had) in had.iter_mut().enumerate() {
                *had = later * mixture.counts[source];
            }
            let sum: f64 = weights.iter().sum();
            for position in later * PERIOD..(later + 1) * PERIOD {
                for (source, &had) in had.iter().enumerate() {
                    let share = u128::from(mixture.counts[source]) * u128::from(position);
                    prop_assert!((u128::from(had) * u128::from(PERIOD)).abs_diff(share) < u128::from(PERIOD));
                }
                let (source, index) = mixture.at(position);
                prop_assert_eq!(index, had[source]);
                had[source] += 1;
                if position % 997 == 0 {
                    for (source, &had) in had.iter().enumerate() {
                        prop_assert_eq!(mixture.samples(source, position + 1), had);
                    }
                }
            }
            for (&count, weight) in mixture.counts.iter().zip(&weights) {
                let wanted = weight / sum * PERIOD as f64;
                prop_assert!((count as f64 - wanted).abs() < 1.0 + weights.len() as f64);
            }
        }
    }

    #[test]
    fn shares_of_four_digits_are_met_and_small_ones_are_kept() {
        assert_eq!(counts(&[0.7, 0.2, 0.1]), [7000, 2000, 1000]);
        assert_eq!(counts(&[1.0, 1.0, 1.0]), [3334, 3333, 3333]);
        assert_eq!(counts(&[1e300, 1e300]), [5000, 5000]);
        assert_eq!(counts(&[1.0, 1e-9, 1e-9]), [9998, 1, 1]);
        assert_eq!(counts(&[1e-9; 10_000]).iter().sum::<u64>(), PERIOD);
    }

    #[test]
    fn turns_are_spread() {
        let mixture = Mixture::new(&[3.0, 1.0]).unwrap();
        let sources: Vec<usize> = (0..8).map(|position| mixture.at(position).0).collect();
        assert_eq!(sources, [0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn refuses_weights_that_are_no_shares() {
        for weights in [&[0.0, 1.0][..], &[-1.0], &[f64::NAN], &[f64::INFINITY], &[1.0; 10_001]] {
            assert!(Mixture::new(weights).unwrap_err().is_config());
        }
    }
}
