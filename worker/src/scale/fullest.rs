//! How many tokens the rank has that all others wait for, found by drawing steps.

use data_pipeline::{Deal, Purpose, keyed_rng, uniform_below};

use super::rows::{Row, SPECIAL};

/// Steps that are drawn.
const STEPS: u64 = 16;
/// Rows of all of them together, if a step has fewer: plans of any batch take moments.
const MOST_ROWS: u64 = 1 << 18;

/// How the tokens of a step lie on its ranks.
#[derive(Debug, Clone, Copy)]
pub struct Spread<'a> {
    /// Rows that stand for all.
    pub rows: &'a [Row],
    /// Rows of a step.
    pub global_batch: u64,
    /// Ranks, each with every `ranks`-th row.
    pub ranks: u64,
    /// Whether the ranks swap rows.
    pub balanced: bool,
}

impl Spread<'_> {
    /// Expected visible tokens of the fullest rank, as a multiple of the mean over the ranks.
    pub fn fullest(&self) -> f64 {
        let steps = STEPS.min(MOST_ROWS / self.global_batch.max(1)).max(1);
        let [mut fullest, mut all] = [0, 0];
        for step in 0..steps {
            let mut lengths = self.lengths(step);
            if self.balanced {
                lengths = Deal::new(&lengths).dealt(&lengths);
            }
            let tokens = lengths.iter().map(|rows| rows.iter().map(|&length| u64::from(length)).sum::<u64>());
            fullest += tokens.clone().max().unwrap_or(0);
            all += tokens.sum::<u64>();
        }
        if all == 0 { 1.0 } else { fullest as f64 * self.ranks as f64 / all as f64 }
    }

    /// Visible tokens of the rows of every rank.
    fn lengths(&self, step: u64) -> Vec<Vec<u32>> {
        let mut lengths = vec![Vec::new(); self.ranks as usize];
        for number in 0..if self.rows.is_empty() { 0 } else { self.global_batch } {
            let mut rng = keyed_rng(0, Purpose::Drop, step, number);
            let row = self.rows[uniform_below(&mut rng, self.rows.len() as u64) as usize];
            let stay = uniform_below(&mut rng, row.tokens as u64 + 1) as usize;
            lengths[(number % self.ranks) as usize].push((SPECIAL + row.prompt + stay) as u32);
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_rows_even_ranks_out_as_long_as_they_have_some() {
        let rows = [Row { prompt: 0, tokens: 500 }, Row { prompt: 10, tokens: 900 }];
        let fullest =
            |global_batch, ranks, balanced| Spread { rows: &rows, global_batch, ranks, balanced }.fullest();
        assert_eq!((fullest(8, 1, true), fullest(8, 1, false)), (1.0, 1.0));
        let (apart, balanced) = (fullest(512, 64, false), fullest(512, 64, true));
        assert!(apart > 1.4 && balanced < 1.05, "{apart} {balanced}");
        // Nothing to swap: the longest of 64 rows decides.
        assert_eq!(fullest(64, 64, true), fullest(64, 64, false));
        assert!(fullest(64, 64, true) > 2.0);
    }

    #[test]
    fn rows_of_one_length_and_no_rows_are_even() {
        let even = [Row { prompt: 6, tokens: 0 }];
        assert_eq!(Spread { rows: &even, global_batch: 12, ranks: 4, balanced: false }.fullest(), 1.0);
        assert_eq!(Spread { rows: &[], global_batch: 12, ranks: 4, balanced: true }.fullest(), 1.0);
    }
}
