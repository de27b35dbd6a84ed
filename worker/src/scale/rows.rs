//! How long rows are: moments of the number of visible tokens, from lengths that were looked up or assumed.

use serde::Serialize;

/// Median and spread of the lengths of OpenWebText documents in tokens of GPT-2, as a lognormal distribution.
pub const ASSUMED_MEDIAN: u32 = 520;
const ASSUMED_SIGMA: f64 = 0.5;

/// CLS and BOS are always visible.
pub(super) const SPECIAL: usize = 2;

/// A row before anything is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Tokens of its prompt, which are always visible.
    pub prompt: usize,
    /// Tokens that may be dropped.
    pub tokens: usize,
}

/// What matters of the lengths of rows. The number of tokens that stay of n is uniform from 0 to n.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RowMoments {
    /// Mean tokens before dropping.
    pub source: f64,
    /// Mean visible tokens.
    pub visible: f64,
    /// Mean of their squares.
    pub visible_squared: f64,
    /// Most visible tokens.
    pub longest: f64,
}

impl RowMoments {
    /// Of rows that stand for all; none for no rows.
    pub fn of(rows: impl IntoIterator<Item = Row>) -> Option<Self> {
        let mut count = 0.0;
        let mut sums = Self { source: 0.0, visible: 0.0, visible_squared: 0.0, longest: 0.0 };
        for row in rows {
            let (base, n) = ((SPECIAL + row.prompt) as f64, row.tokens as f64);
            count += 1.0;
            sums.source += base + n;
            sums.visible += base + n / 2.0;
            sums.visible_squared += base * base + base * n + n * (2.0 * n + 1.0) / 6.0;
            sums.longest = sums.longest.max(base + n);
        }
        (count > 0.0).then(|| Self {
            source: sums.source / count,
            visible: sums.visible / count,
            visible_squared: sums.visible_squared / count,
            longest: sums.longest,
        })
    }
}

/// Texts of lognormal length with this median, cut to the block: the quantiles of `count` equal parts.
pub fn assumed_rows(median: f64, block_size: usize, count: usize) -> impl Iterator<Item = Row> {
    let room = block_size.saturating_sub(SPECIAL);
    (0..count).map(move |part| {
        let quantile = normal_quantile((part as f64 + 0.5) / count as f64);
        let tokens = (median * (ASSUMED_SIGMA * quantile).exp()).round() as usize;
        Row { prompt: 0, tokens: tokens.min(room) }
    })
}

/// Where the standard normal distribution function takes a value strictly between 0 and 1.
fn normal_quantile(probability: f64) -> f64 {
    let (mut below, mut above) = (-10.0, 10.0);
    for _ in 0..60 {
        let middle = (below + above) / 2.0;
        let reached = 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2);
        if reached < probability {
            below = middle;
        } else {
            above = middle;
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_equal_a_count_by_hand() {
        // Visible: 2, 3 or 4; and always 5.
        let rows = [Row { prompt: 0, tokens: 2 }, Row { prompt: 3, tokens: 0 }];
        let moments = RowMoments::of(rows).unwrap();
        assert_eq!((moments.source, moments.longest), (4.5, 5.0));
        assert_eq!(moments.visible, (3.0 + 5.0) / 2.0);
        assert!((moments.visible_squared - ((4.0 + 9.0 + 16.0) / 3.0 + 25.0) / 2.0).abs() < 1e-12);
        assert_eq!(RowMoments::of([]), None);
    }

    #[test]
    fn assumed_rows_have_the_median_and_the_block() {
        let rows: Vec<usize> = assumed_rows(520.0, 1024, 1001).map(|row| row.tokens).collect();
        assert_eq!((rows[500], rows[1000]), (520, 1022));
        assert!((normal_quantile(0.975) - 1.959_964).abs() < 1e-6);
        // One standard deviation above the median.
        assert_eq!(rows[841], (520.0 * (0.5 * normal_quantile(841.5 / 1001.0)).exp()).round() as usize);
        assert!(rows[841].abs_diff(857) < 3);
    }
}
