//! Rows sorted by length to micro-batches: as few as the limits allow, and none much larger than another.

use std::ops::Range;

use crate::error::{Error, Result};

/// How large a micro-batch may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatchLimit {
    /// Most rows.
    pub rows: usize,
    /// Most visible tokens, CLS and BOS included (none: no limit). A longer row is a micro-batch of its own.
    pub visible_tokens: Option<usize>,
}

impl MicroBatchLimit {
    /// No micro-batch holds nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if self.rows == 0 || self.visible_tokens == Some(0) {
            return Err(Error::Setting(format!(
                "a micro-batch of at most {} rows and {} visible tokens holds nothing; use at least 1",
                self.rows,
                self.visible_tokens.map_or("any number of".to_owned(), |tokens| tokens.to_string())
            )));
        }
        Ok(())
    }

    /// Consecutive ranges of `lengths`, which are the visible tokens of the rows; the limit has been checked.
    ///
    /// If only rows are limited, the parts differ by at most one row. Otherwise the largest part has as few tokens as
    /// that number of parts allows, since it decides how much memory a step needs.
    pub(crate) fn cut(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        let Some(most) = self.visible_tokens else { return equal_parts(lengths.len(), self.rows) };
        let parts = self.greedy(lengths, most).count();
        let (mut least, mut most) = (1, most);
        while least < most {
            let middle = least + (most - least) / 2;
            if self.greedy(lengths, middle).nth(parts).is_none() {
                most = middle;
            } else {
                least = middle + 1;
            }
        }
        self.greedy(lengths, most).collect()
    }

    /// Every part takes rows until one more would be too much; no other cut into ranges has fewer parts.
    fn greedy(&self, lengths: &[usize], tokens: usize) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut sum = *lengths.get(start)?;
            let more = lengths[start + 1..].iter().take(self.rows - 1).take_while(|&&length| {
                sum = sum.saturating_add(length);
                sum <= tokens
            });
            let part = start..start + 1 + more.count();
            start = part.end;
            Some(part)
        })
    }
}

/// The fewest parts of at most `most` rows, as equal as can be.
fn equal_parts(rows: usize, most: usize) -> Vec<Range<usize>> {
    let parts = rows.div_ceil(most);
    (0..parts).map(|part| rows * part / parts..rows * (part + 1) / parts).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fewest ranges within the limits, by trying every end of the first one.
    fn fewest(lengths: &[usize], limit: MicroBatchLimit) -> usize {
        let mut best = vec![0; lengths.len() + 1];
        for start in (0..lengths.len()).rev() {
            let ends = start + 1..=lengths.len().min(start + limit.rows);
            let fits = |end: &usize| {
                *end == start + 1
                    || limit
                        .visible_tokens
                        .is_none_or(|most| lengths[start..*end].iter().sum::<usize>() <= most)
            };
            best[start] = 1 + ends.filter(fits).map(|end| best[end]).min().unwrap();
        }
        best[0]
    }

    proptest! {
        #[test]
        fn parts_are_few_within_the_limits_and_cover_the_rows_in_order(
            mut lengths in prop::collection::vec(2usize..40, 0..40),
            rows in 1usize..12,
            visible_tokens in prop::option::of(1usize..120),
        ) {
            lengths.sort_unstable();
            let limit = MicroBatchLimit { rows, visible_tokens };
            let parts = limit.cut(&lengths);
            prop_assert!(parts.iter().cloned().flatten().eq(0..lengths.len()));
            for part in &parts {
                prop_assert!((1..=rows).contains(&part.len()));
                let sum: usize = lengths[part.clone()].iter().sum();
                prop_assert!(part.len() == 1 || visible_tokens.is_none_or(|most| sum <= most));
            }
            prop_assert_eq!(parts.len(), fewest(&lengths, limit));
            if visible_tokens.is_none() {
                let sizes = || parts.iter().map(Range::len);
                prop_assert!(sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0) <= 1);
            }
        }
    }

    #[test]
    fn rows_and_tokens_are_spread() {
        let sizes = |limit: MicroBatchLimit, lengths: &[usize]| {
            limit.cut(lengths).iter().map(Range::len).collect::<Vec<_>>()
        };
        let rows = |rows| MicroBatchLimit { rows, visible_tokens: None };
        assert_eq!(sizes(rows(32), &[5; 33]), [16, 17]);
        assert_eq!(sizes(rows(32), &[5; 32]), [32]);
        assert_eq!(sizes(rows(usize::MAX), &[5; 3]), [3]);
        let tokens = |most| MicroBatchLimit { rows: 32, visible_tokens: Some(most) };
        assert_eq!(sizes(tokens(100), &[10; 12]), [6, 6], "not 10 and 2");
        assert_eq!(sizes(tokens(20), &[5, 5, 5, 30, 40]), [3, 1, 1]);
        assert_eq!(sizes(tokens(usize::MAX), &[usize::MAX; 2]), [2]);
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        for limit in [
            MicroBatchLimit { rows: 0, visible_tokens: None },
            MicroBatchLimit { rows: 1, visible_tokens: Some(0) },
        ] {
            assert!(limit.check().unwrap_err().is_config());
        }
    }
}
