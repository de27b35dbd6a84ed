//! The best entries of an example's scores, and random ones.

use super::scores::Scores;
use crate::sample::top_k;

/// An entry of [`Scores`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Position: index of the row.
    pub row: usize,
    /// Token: index in the row.
    pub column: usize,
}

/// An entry and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Its score.
    pub value: f32,
}

/// A function that draws an index from scores with uniform numbers in [0, 1), as those of [`crate::sample`] do.
pub type Draw<'a> = &'a dyn Fn(&[f32], &mut dyn FnMut() -> f64) -> Option<usize>;

impl Scores<'_> {
    /// The `k` entries of the largest scores (all if there are fewer), largest first; of equals the first, row after row.
    pub fn top_k(&self, k: usize) -> Vec<Entry> {
        top_k(k, self.values()).into_iter().map(|index| self.entry(index)).collect()
    }

    /// The first entry of the largest score; none if there are no rows.
    pub fn max(&self) -> Option<Entry> {
        self.top_k(1).first().copied()
    }

    /// One entry of all, drawn by `draw` from the S x V scores as one row.
    ///
    /// None if `draw` chooses none or an index that does not exist.
    pub fn sample(&self, draw: Draw<'_>, uniform: &mut dyn FnMut() -> f64) -> Option<Place> {
        let index = draw(self.values(), uniform).filter(|&index| index < self.values().len())?;
        Some(self.place(index))
    }

    /// One entry in two steps: `position` draws a row from [`Scores::position_scores`], then `token` draws a column from the
    /// scores of that row. Without `position` it is [`Scores::sample`] with `token`.
    ///
    /// With the plain softmax for both steps the result has the same distribution as in one step.
    pub fn general_sample(
        &self,
        token: Draw<'_>,
        position: Option<Draw<'_>>,
        uniform: &mut dyn FnMut() -> f64,
    ) -> Option<Place> {
        let Some(position) = position else { return self.sample(token, uniform) };
        let row = position(&self.position_scores(), uniform)?;
        let scores = self.rows().nth(row)?;
        let column = token(scores, uniform).filter(|&column| column < scores.len())?;
        Some(Place { row, column })
    }

    fn place(&self, index: usize) -> Place {
        Place { row: index / self.width(), column: index % self.width() }
    }

    fn entry(&self, index: usize) -> Entry {
        Entry { place: self.place(index), value: self.values()[index] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chi_square::{excess, normalized};
    use crate::random::{Purpose, keyed_rng, uniform};
    use crate::sample::{sample, sample_nucleus, sample_top_k, sample_top_p};

    /// Weights of 4 positions x 4 tokens; the third position is closed.
    const WEIGHTS: [[f64; 4]; 4] =
        [[8.0, 1.0, 0.0, 3.0], [2.0, 2.5, 4.0, 1.0], [0.0; 4], [16.0, 6.0, 5.0, 0.5]];

    const PLAIN: Draw<'static> = &|scores, uniform| sample(scores, uniform);

    /// [`excess`] of the joint frequency of (position, token) over what the steps should give.
    fn joint_excess(seed: u64, weights: [[f64; 4]; 4], token: Draw<'_>, position: Option<Draw<'_>>) -> f64 {
        let values: Vec<f32> = WEIGHTS.as_flattened().iter().map(|weight| weight.ln() as f32).collect();
        let scores = Scores::new(&values, 4).unwrap();
        let mut rng = keyed_rng(seed, Purpose::Predict, 0, 0);
        excess(&normalized(weights.as_flattened()), || {
            let place = scores.general_sample(token, position, &mut || uniform(&mut rng)).unwrap();
            place.row * 4 + place.column
        })
    }

    /// The weights, a position's total spread over its tokens of at least the given weight.
    fn rows_spread_over(least: [f64; 4]) -> [[f64; 4]; 4] {
        std::array::from_fn(|row| {
            let kept = WEIGHTS[row].map(|weight| if weight >= least[row] { weight } else { 0.0 });
            let scale = WEIGHTS[row].iter().sum::<f64>() / kept.iter().sum::<f64>().max(1e-300);
            kept.map(|weight| weight * scale)
        })
    }

    #[test]
    fn plain_draws_follow_the_softmax_over_all_in_one_step_and_in_two() {
        assert!(joint_excess(31, WEIGHTS, PLAIN, None) < 1.0);
        assert!(joint_excess(32, WEIGHTS, PLAIN, Some(PLAIN)) < 1.0);
    }

    #[test]
    fn the_position_comes_from_all_its_tokens_and_the_token_from_its_kept_ones() {
        let token: Draw<'_> = &|scores, uniform| sample_top_k(2, scores, uniform);
        assert!(joint_excess(33, rows_spread_over([3.0, 2.5, 1.0, 6.0]), token, Some(PLAIN)) < 1.0);
        // of 12, 9.5 and 27.5 the usual nucleus takes 8 + 3, 4 + 2.5 + 2 and 16 + 6
        let token: Draw<'_> = &|scores, uniform| sample_nucleus(0.75, scores, uniform);
        assert!(joint_excess(34, rows_spread_over([3.0, 2.0, 1.0, 6.0]), token, Some(PLAIN)) < 1.0);
        // positions have 12, 9.5 and 27.5 of 49: the first and the last are 0.81 of it
        let position: Draw<'_> = &|scores, uniform| sample_top_p(0.9, scores, uniform);
        let mut weights = WEIGHTS;
        weights[1] = [0.0; 4];
        assert!(joint_excess(35, weights, PLAIN, Some(position)) < 1.0);
    }

    #[test]
    fn steps_in_the_wrong_order_are_noticed() {
        // top-k of all entries is not top-k of the chosen position
        let token: Draw<'_> = &|scores, uniform| sample_top_k(2, scores, uniform);
        assert!(joint_excess(36, rows_spread_over([3.0, 2.5, 1.0, 6.0]), token, None) > 1.0);
        // the position of the largest score's logarithm is not that of the largest sum
        let position: Draw<'_> =
            &|_, uniform| sample(&[8f32.ln(), 4f32.ln(), f32::NEG_INFINITY, 16f32.ln()], uniform);
        assert!(joint_excess(37, WEIGHTS, PLAIN, Some(position)) > 1.0);
    }

    #[test]
    fn equals_are_taken_row_after_row() {
        let scores = Scores::new(&[1.0, 5.0, 5.0, 0.0], 2).unwrap();
        let places: Vec<(usize, usize)> =
            scores.top_k(9).iter().map(|entry| (entry.place.row, entry.place.column)).collect();
        assert_eq!(places, [(0, 1), (1, 0), (0, 0), (1, 1)]);
        assert_eq!(scores.max(), Some(Entry { place: Place { row: 0, column: 1 }, value: 5.0 }));
    }

    #[test]
    fn nothing_to_choose_gives_none() {
        let empty = Scores::new(&[], 3).unwrap();
        let closed = Scores::new(&[f32::NEG_INFINITY; 6], 3).unwrap();
        let outside: Draw<'_> = &|scores, _| Some(scores.len());
        assert_eq!(empty.max(), None);
        for (scores, draw) in [(empty, PLAIN), (closed, PLAIN), (closed, outside)] {
            assert_eq!(scores.sample(draw, &mut || 0.5), None);
            assert_eq!(scores.general_sample(draw, Some(PLAIN), &mut || 0.5), None);
            assert_eq!(scores.general_sample(draw, Some(outside), &mut || 0.5), None);
        }
        let open = Scores::new(&[0.0; 6], 3).unwrap();
        assert_eq!(open.general_sample(outside, Some(PLAIN), &mut || 0.5), None);
    }
}
