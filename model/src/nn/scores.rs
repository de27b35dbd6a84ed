//! The scores of one example, normalised as a whole, and the cross entropy on them.

use std::slice::ChunksExact;

use crate::error::{Error, Result};

/// Logits of one example: a row for each position, a column for each token, row after row. Minus infinity closes an entry.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    values: &'a [f32],
    width: usize,
}

/// What [`Scores::masked_ce`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskedCe {
    /// In nats; infinite if a closed entry is a target.
    pub loss: f64,
    /// d loss / d logits (S x V), 0 in forbidden rows.
    pub gradient: Vec<f32>,
}

impl<'a> Scores<'a> {
    /// S x `width` values; there may be no rows.
    ///
    /// # Errors
    /// The width is 0 or does not divide the number of values.
    pub fn new(values: &'a [f32], width: usize) -> Result<Self> {
        if width == 0 || !values.len().is_multiple_of(width) {
            let problem = format!("{} values are no whole rows of {width}", values.len());
            return Err(Error::Sizes { what: "scores", problem });
        }
        Ok(Self { values, width })
    }

    /// All values (S x V), row after row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Tokens: V.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Positions: S.
    pub fn height(&self) -> usize {
        self.values.len() / self.width
    }

    /// The rows in order, each of V values.
    pub fn rows(&self) -> ChunksExact<'a, f32> {
        self.values.chunks_exact(self.width)
    }

    /// Log probabilities (S x V) with one normaliser for all entries; minus infinity everywhere if all entries are closed.
    pub fn log_softmax(&self) -> Vec<f32> {
        let normalizer = logsumexp(self.values.iter().copied());
        if normalizer == f64::NEG_INFINITY {
            return vec![f32::NEG_INFINITY; self.values.len()];
        }
        self.values.iter().map(|&value| (f64::from(value) - normalizer) as f32).collect()
    }

    /// logsumexp of each row (S): the logits of the positions, whatever the token. Minus infinity for a closed row.
    pub fn position_scores(&self) -> Vec<f32> {
        self.rows().map(|row| logsumexp(row.iter().copied()) as f32).collect()
    }

    /// Cross entropy of target weights t (S x V) under the softmax over the rows that are not `forbidden` (S):
    /// `loss = sum t (Z - logit)` with Z = logsumexp over the open rows, `gradient = (sum t) softmax - t`.
    ///
    /// Forbidden rows are left out of the sums, so no stand-in for minus infinity is needed, which the reference derives from
    /// a number type. A target weight in a forbidden row or on a logit of minus infinity makes the loss infinite. If nothing at
    /// all is open, every entry counts as equally likely, as in the reference: the loss is ln(S V) sum t and the gradient 0. A
    /// target without weight has loss 0 and gradient 0.
    ///
    /// # Errors
    /// Target or mask have another size than the scores.
    pub fn masked_ce(&self, target: &[f32], forbidden: &[bool]) -> Result<MaskedCe> {
        Error::unless_sized("target weights", self.values.len(), target.len())?;
        Error::unless_sized("marks of forbidden rows", self.height(), forbidden.len())?;
        let weight: f64 = target.iter().map(|&share| f64::from(share)).sum();
        let mut gradient = vec![0.0; self.values.len()];
        if target.iter().all(|&share| share == 0.0) {
            return Ok(MaskedCe { loss: 0.0, gradient });
        }
        let open = self.rows().zip(forbidden).filter(|(_, forbidden)| !**forbidden);
        let normalizer = logsumexp(open.flat_map(|(row, _)| row.iter().copied()));
        if normalizer == f64::NEG_INFINITY {
            return Ok(MaskedCe { loss: (self.values.len() as f64).ln() * weight, gradient });
        }
        let mut loss = 0.0;
        for (at, (&logit, &share)) in self.values.iter().zip(target).enumerate() {
            let (log_p, share) = (f64::from(logit) - normalizer, f64::from(share));
            let forbidden = forbidden[at / self.width];
            if !forbidden {
                gradient[at] = (weight * log_p.exp() - share) as f32;
            }
            // a closed entry that is no target costs nothing, where 0 x infinity would be no number
            if share != 0.0 {
                loss -= if forbidden { f64::NEG_INFINITY } else { share * log_p };
            }
        }
        Ok(MaskedCe { loss, gradient })
    }
}

/// ln of the sum of exponentials: minus infinity of nothing, NaN if any value is.
fn logsumexp(values: impl Iterator<Item = f32> + Clone) -> f64 {
    let top = values.clone().fold(f32::NEG_INFINITY, f32::max);
    if top == f32::NEG_INFINITY {
        // nothing is open, unless the maximum passed over what is no number
        return values.fold(f64::NEG_INFINITY, |sum, value| sum + f64::from(value));
    }
    let sum: f64 = values.map(|value| (f64::from(value) - f64::from(top)).exp()).sum();
    f64::from(top) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: f32 = f32::NEG_INFINITY;

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let message = |result: Result<()>| result.unwrap_err().to_string();
        for width in [0, 2] {
            let wanted = format!("scores do not fit: 3 values are no whole rows of {width}");
            assert_eq!(message(Scores::new(&[0.0; 3], width).map(drop)), wanted);
        }
        let scores = Scores::new(&[0.0; 6], 3).unwrap();
        assert_eq!(
            message(scores.masked_ce(&[0.0; 5], &[false; 2]).map(drop)),
            "target weights do not fit: 6 are needed but 5 were given"
        );
        assert!(
            message(scores.masked_ce(&[0.0; 6], &[false; 3]).map(drop)).starts_with("marks of forbidden")
        );
    }

    #[test]
    fn closed_entries_have_no_probability() {
        let scores = Scores::new(&[0.0, CLOSED, CLOSED, CLOSED], 2).unwrap();
        assert_eq!(scores.log_softmax(), [0.0, CLOSED, CLOSED, CLOSED]);
        assert_eq!(scores.position_scores(), [0.0, CLOSED]);
        let nothing = Scores::new(&[CLOSED; 4], 2).unwrap();
        assert_eq!(nothing.log_softmax(), [CLOSED; 4]);
        let empty = Scores::new(&[], 2).unwrap();
        assert_eq!((empty.height(), empty.log_softmax()), (0, vec![]));
    }

    #[test]
    fn what_is_no_number_stays_visible() {
        for values in [[f32::NAN; 2], [f32::NAN, CLOSED], [1.0, f32::NAN]] {
            let scores = Scores::new(&values, 2).unwrap();
            assert!(scores.position_scores()[0].is_nan() && scores.log_softmax()[0].is_nan());
            assert!(scores.masked_ce(&[1.0, 0.0], &[false]).unwrap().loss.is_nan());
        }
    }

    #[test]
    fn closed_entries_cost_nothing_unless_they_are_targets() {
        let scores = Scores::new(&[0.0, CLOSED, 3.0, 0.0], 2).unwrap();
        let ce = scores.masked_ce(&[0.5, 0.0, 0.0, 0.0], &[false, true]).unwrap();
        assert_eq!(ce, MaskedCe { loss: 0.0, gradient: vec![0.0; 4] });
        for target in [[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]] {
            assert_eq!(scores.masked_ce(&target, &[false, true]).unwrap().loss, f64::INFINITY);
        }
    }

    #[test]
    fn with_nothing_open_every_entry_is_as_likely() {
        let target = [0.25, 0.0, 0.5, 0.0];
        let expected = MaskedCe { loss: 0.75 * 4f64.ln(), gradient: vec![0.0; 4] };
        let scores = Scores::new(&[0.0, 1.0, 2.0, 3.0], 2).unwrap();
        assert_eq!(scores.masked_ce(&target, &[true, true]).unwrap(), expected);
        let closed = Scores::new(&[CLOSED; 4], 2).unwrap();
        assert_eq!(closed.masked_ce(&target, &[false, true]).unwrap(), expected);
        assert_eq!(closed.masked_ce(&[0.0; 4], &[false, true]).unwrap().loss, 0.0);
        let empty = Scores::new(&[], 2).unwrap().masked_ce(&[], &[]).unwrap();
        assert_eq!(empty, MaskedCe { loss: 0.0, gradient: vec![] });
    }
}
