//! Drops of whole spans: a few stretches of a text are missing, as in infilling.

use crate::{
    drop::{Drops, SampleKey, choose},
    error::{Error, Result},
    random::{Purpose, keyed_rng},
};

/// Drops a share of the tokens in a number of spans between which at least one token stays; all such choices of places
/// and lengths are equally likely. A row too short for so many spans has as many as fit.
#[derive(Debug, Clone, Copy)]
pub struct SpanDrops {
    seed: u64,
    spans: usize,
    share: f64,
}

impl SpanDrops {
    /// `spans` stretches that are together `share` (above 0, at most 1) of a row.
    ///
    /// # Errors
    /// [`Error::Setting`] for no spans or a share outside its range.
    pub fn new(seed: u64, spans: usize, share: f64) -> Result<Self> {
        if spans == 0 || !(share > 0.0 && share <= 1.0) {
            return Err(Error::Setting(format!(
                "{spans} spans of a share of {share} drop nothing or too much; use at least 1 span and a share above 0 and \
                 at most 1"
            )));
        }
        Ok(Self { seed, spans, share })
    }
}

impl Drops for SpanDrops {
    fn draw(&self, key: SampleKey, dropped: &mut [bool]) {
        let n = dropped.len();
        let count = ((n as f64 * self.share).round() as usize).clamp(n.min(1), n);
        let kept = n - count;
        let spans = self.spans.min(count).min(kept + 1);
        if spans == 0 {
            return;
        }
        let mut rng = keyed_rng(self.seed, Purpose::Spans, key.epoch, key.row);
        // A span begins before some of the kept tokens (or behind the last), and after some of the dropped ones.
        let mut begins = vec![false; kept + 1];
        choose(&mut rng, spans, &mut begins);
        let mut ends = vec![false; count];
        choose(&mut rng, spans - 1, &mut ends[..count - 1]);
        ends[count - 1] = true;
        let mut lengths = ends.split_inclusive(|&end| end).map(<[bool]>::len);
        let mut at = 0;
        for begins in begins {
            if begins && let Some(length) = lengths.next() {
                dropped[at..at + length].fill(true);
                at += length;
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn draw(spans: usize, share: f64, row: u64, n: usize) -> Vec<bool> {
        let mut dropped = vec![false; n];
        let key = SampleKey { position: 0, epoch: 0, row };
        SpanDrops::new(1, spans, share).unwrap().draw(key, &mut dropped);
        dropped
    }

    proptest! {
        #[test]
        fn spans_and_share_are_as_asked(spans in 1usize..6, share in 0.01f64..=1.0, row: u64, n in 0usize..80) {
            let dropped = draw(spans, share, row, n);
            let count = dropped.iter().filter(|&&flag| flag).count();
            prop_assert_eq!(count, ((n as f64 * share).round() as usize).max(1).min(n));
            let runs = dropped.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            prop_assert_eq!(runs, spans.min(count).min(n - count + 1));
        }
    }

    /// Two spans of three out of six tokens: 2 ways to part three, 6 to place two spans among three kept tokens.
    #[test]
    fn all_choices_are_equally_likely() {
        let mut seen = BTreeMap::new();
        for row in 0..24_000 {
            *seen.entry(draw(2, 0.5, row, 6)).or_insert(0f64) += 1.0;
        }
        assert_eq!(seen.len(), 12);
        let chi_square: f64 = seen.values().map(|count| (count - 2000.0).powi(2) / 2000.0).sum();
        assert!(chi_square < 31.3, "11 degrees of freedom, p = 0.001: {chi_square}");
    }

    /// Evaluations are compared over versions: the draws must never change.
    #[test]
    fn values_are_pinned() {
        let places = |row| (0..10).filter(|&place| draw(2, 0.5, row, 10)[place]).collect::<Vec<_>>();
        assert_eq!([places(0), places(1)], [[2, 3, 4, 5, 7], [2, 3, 5, 6, 7]]);
    }

    #[test]
    fn senseless_settings_are_refused() {
        for (spans, share) in [(0, 0.5), (1, 0.0), (1, 1.1), (1, f64::NAN)] {
            assert!(SpanDrops::new(1, spans, share).unwrap_err().is_config());
        }
    }
}
