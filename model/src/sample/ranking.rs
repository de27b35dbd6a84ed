//! Scores from the largest down, put in order only as far as they are looked at: most draws look at a few of many thousands.

/// First step of ordering; each further one is four times as far.
const FIRST: usize = 64;

/// Indices of scores, the largest first, equal ones in ascending order, what is no number last.
pub(super) struct Ranking {
    /// Smaller is better: a descending image of the score above the index.
    keys: Vec<u64>,
    /// Keys before this are in their final order.
    ordered: usize,
}

impl Ranking {
    pub(super) fn new(scores: &[f32]) -> Self {
        let key = |(index, &score): (usize, &f32)| u64::from(!ascending_bits(score)) << 32 | index as u64;
        Self { keys: scores.iter().enumerate().map(key).collect(), ordered: 0 }
    }

    /// The index with the next lower score.
    fn get(&mut self, place: usize) -> Option<usize> {
        if place >= self.ordered {
            self.order_up_to((4 * self.ordered).max(FIRST));
        }
        self.keys.get(place).map(|&key| (key & u64::from(u32::MAX)) as usize)
    }

    fn order_up_to(&mut self, end: usize) {
        let end = end.min(self.keys.len());
        let rest = &mut self.keys[self.ordered..];
        let count = end - self.ordered;
        if count < rest.len() {
            rest.select_nth_unstable(count);
        }
        rest[..count].sort_unstable();
        self.ordered = end;
    }

    /// The indices in order.
    pub(super) fn iter(&mut self) -> impl Iterator<Item = usize> + '_ {
        (0..).map_while(|place| self.get(place))
    }
}

/// Bits that compare as unsigned numbers like the scores do; equal scores have equal bits, -0 and 0 too.
fn ascending_bits(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, keyed_rng, uniform};

    #[test]
    fn order_is_that_of_a_stable_sort_however_far_it_is_looked_at() {
        let mut rng = keyed_rng(1, Purpose::Predict, 0, 0);
        for len in [0, 1, 63, 64, 65, 255, 257, 3000] {
            // few distinct values, so that there are ties
            let scores: Vec<f32> = (0..len)
                .map(|_| ((uniform(&mut rng) * 41.0) as i32 - 20) as f32 / 4.0)
                .map(|score| if score == -5.0 { f32::NEG_INFINITY } else { score })
                .collect();
            let mut expected: Vec<usize> = (0..len).collect();
            expected.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            assert_eq!(Ranking::new(&scores).iter().collect::<Vec<_>>(), expected);
            let some: Vec<usize> = Ranking::new(&scores).iter().take(70).collect();
            assert_eq!(some, expected[..some.len()]);
        }
    }

    #[test]
    fn zeros_are_equal_and_what_is_no_number_is_last() {
        let scores = [-0.0, f32::INFINITY, f32::NAN, 0.0, -1.0, 1e-40, f32::NEG_INFINITY, -f32::NAN];
        assert_eq!(Ranking::new(&scores).iter().collect::<Vec<_>>(), [1, 5, 0, 3, 4, 6, 2, 7]);
    }
}
