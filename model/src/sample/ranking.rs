//! Scores from the largest down, put in order only as far as they are looked at: most draws look at a few of many thousands.

use super::vectors::{largest, sum_of_key_weights};
use super::weight;

/// How far below the largest score entries are, band by band; behind these bands are those of all other numbers and the rest.
const DEPTHS: [f32; 3] = [4.0, 16.0, 64.0];

/// Entries that are put in order at once; each further step is four times as far.
const FIRST: usize = 64;

/// Indices of scores, the largest first, equal ones in ascending order, what is no number last.
pub(super) struct Ranking<'a> {
    scores: &'a [f32],
    top: f32,
    /// Smaller is better: a descending image of the score above the index. Of whole bands.
    keys: Vec<u64>,
    /// Bands that have keys.
    bands: usize,
    /// Keys before this are in their final order.
    ordered: usize,
}

impl<'a> Ranking<'a> {
    pub(super) fn new(scores: &'a [f32]) -> Self {
        Self { scores, top: largest(scores), keys: Vec::new(), bands: 0, ordered: 0 }
    }

    /// The largest score; minus infinity if there is none.
    pub(super) fn top(&self) -> f32 {
        self.top
    }

    /// The indices in order.
    pub(super) fn iter(&mut self) -> impl Iterator<Item = usize> + '_ {
        (0..).map_while(|place| self.get(place))
    }

    /// The index with the next lower score.
    fn get(&mut self, place: usize) -> Option<usize> {
        while place >= self.ordered {
            if self.ordered == self.keys.len() && !self.add_band(DEPTHS.len() + 2) {
                return None;
            }
            self.order_up_to((4 * self.ordered).max(FIRST));
        }
        self.keys.get(place).map(|&key| index_of(key))
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

    /// Gives keys to the next band, if it is among the first `bands`.
    fn add_band(&mut self, bands: usize) -> bool {
        if self.bands >= bands {
            return false;
        }
        let floor = |band: usize| DEPTHS.get(band).map_or(f32::NEG_INFINITY, |depth| self.top - depth);
        let (floor, ceiling) = (floor(self.bands), self.bands.checked_sub(1).map(floor));
        let is_rest = self.bands > DEPTHS.len();
        let belongs = |score: f32| match ceiling {
            _ if score.is_nan() || score == f32::NEG_INFINITY => is_rest,
            None => score >= floor,
            Some(ceiling) => score >= floor && score < ceiling,
        };
        let entries = self.scores.iter().enumerate().filter(|&(_, &score)| belongs(score));
        self.keys.extend(entries.map(|(index, &score)| key_of(score, index)));
        self.bands += 1;
        true
    }

    /// The most of the largest scores whose weights, those of e^(score - top) times `scale`, sum to what is `within`; and the
    /// index that follows, which is not. Minus infinity is passed over. Few are added up in order, many as they come.
    pub(super) fn lead(mut self, scale: f32, within: impl Fn(f64) -> bool) -> (Vec<usize>, Option<usize>) {
        let (mut sum, mut taken) = (0.0, 0);
        let mut next = None;
        while next.is_none() && self.add_band(DEPTHS.len() + 1) {
            let mut end = self.keys.len();
            let mut part = end - taken;
            while part > FIRST {
                let keys = &mut self.keys[taken..end];
                if part < keys.len() {
                    keys.select_nth_unstable(part);
                }
                let with_part = sum + sum_of_key_weights(&keys[..part], self.top) * f64::from(scale);
                if within(with_part) {
                    (sum, taken) = (with_part, taken + part);
                } else {
                    end = taken + part;
                }
                part = (end - taken).div_ceil(2);
                if taken == end {
                    break;
                }
            }
            self.keys[taken..end].sort_unstable();
            for &key in &self.keys[taken..end] {
                sum += f64::from(weight(self.scores[index_of(key)], self.top) * scale);
                if !within(sum) {
                    next = Some(index_of(key));
                    break;
                }
                taken += 1;
            }
        }
        (self.keys[..taken].iter().map(|&key| index_of(key)).collect(), next)
    }
}

pub(super) fn key_of(score: f32, index: usize) -> u64 {
    u64::from(!ascending_bits(score)) << 32 | index as u64
}

fn index_of(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

/// The score of a key that is a number; 0 for -0.
#[inline(always)]
pub(super) fn score_of(key: u64) -> f32 {
    let bits = !((key >> 32) as u32);
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
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

    #[test]
    fn keys_hold_their_scores() {
        for score in [0.0, 1.5, -1.5, f32::MIN, f32::MAX, 1e-40, -1e-40, f32::INFINITY] {
            assert_eq!((score_of(key_of(score, 77)), index_of(key_of(score, 77))), (score, 77));
        }
    }

    #[test]
    fn a_lead_is_that_of_adding_up_in_order() {
        let mut rng = keyed_rng(2, Purpose::Predict, 0, 0);
        for (len, spread) in
            [(0, 1.0), (1, 1.0), (64, 3.0), (65, 3.0), (1000, 0.1), (3000, 2.0), (3000, 90.0)]
        {
            let scores: Vec<f32> = (0..len)
                .map(|at| if at % 50 == 7 { f32::NEG_INFINITY } else { (uniform(&mut rng) * spread) as f32 })
                .collect();
            let order: Vec<usize> = Ranking::new(&scores).iter().collect();
            let open = order.iter().take_while(|&&index| scores[index] > f32::NEG_INFINITY).count();
            let weights: Vec<f64> =
                order.iter().map(|&index| f64::from(scores[index] - scores[order[0]]).exp()).collect();
            let total: f64 = weights.iter().sum();
            for share in [0.0, 0.01, 0.3, 0.5, 0.93, 2.0] {
                let (mut kept, next) = Ranking::new(&scores).lead(total.recip() as f32, |sum| sum <= share);
                let mut sum = 0.0;
                let within = |weight: &&f64| {
                    sum += *weight / total;
                    sum <= share
                };
                let count = weights[..open].iter().take_while(within).count();
                assert_eq!(next, order[..open].get(count).copied(), "{len} {spread} {share}");
                let mut expected = order[..count].to_vec();
                kept.sort_unstable();
                expected.sort_unstable();
                assert_eq!(kept, expected);
            }
        }
    }
}
