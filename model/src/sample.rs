//! Drawing one of several scored choices with Gumbel noise, as the reference defines it.
//!
//! Scores are logits; an entry of minus infinity is never chosen, ties go to the lowest index, and every function returns
//! none if there is nothing to choose. `uniform` gives numbers in [0, 1), one for each entry considered, in their order.
//!
//! The largest of score + Gumbel noise is a draw from the softmax of the scores. The noise of a uniform number u is
//! -ln(-ln(u + 1e-10) + 1e-10), so a row of scores and a row of uniform numbers always give the same choice.

mod draws;
mod noise;
mod ranking;
#[cfg(test)]
mod statistics;
mod vectors;

pub(crate) use draws::{Draws, Method};
pub(crate) use noise::{Leader, Noise, better};
use ranking::Ranking;
use vectors::{RUN, most};
pub(crate) use vectors::{largest, sum_of_weights};

/// Rows up to this length are added up as the reference does.
const SHORT: usize = 16;

/// One entry with probability softmax(scores): the largest of score + Gumbel noise.
pub fn sample(scores: &[f32], uniform: impl FnMut() -> f64) -> Option<usize> {
    sample_scaled(scores, 1.0, 1.0, uniform)
}

/// The largest of score / `temperature` + `noise_scale` x Gumbel noise.
///
/// `temperature` is above 0; without noise (scale 0) this is the argmax, and as many uniform numbers are taken.
pub fn sample_scaled(
    scores: &[f32],
    temperature: f32,
    noise_scale: f64,
    mut uniform: impl FnMut() -> f64,
) -> Option<usize> {
    best(scores.iter().map(|score| f64::from(score / temperature) + noise_scale * gumbel(uniform())))
}

/// One entry in proportion to `probabilities`, which need not sum to 1: the largest of p / (1e-10 - ln(u + 1e-10)).
///
/// That is an exponential race: the entry of rate p that arrives first. Entries of 0 never do.
pub fn sample_categorical(probabilities: &[f32], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    best(probabilities.iter().map(|&probability| {
        let delay = 1e-10 - (uniform() + 1e-10).ln();
        if probability > 0.0 { f64::from(probability) / delay } else { f64::NEG_INFINITY }
    }))
}

/// As [`sample`] over the entries that [`top_k`] keeps; `k` = 1 is the argmax and takes no noise. Noise is taken in
/// descending order of score.
pub fn sample_top_k(k: usize, scores: &[f32], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    if k == 1 {
        return best(scores.iter().map(|&score| f64::from(score)));
    }
    let kept = top_k(k, scores);
    best(kept.iter().map(|&index| f64::from(scores[index]) + gumbel(uniform()))).map(|place| kept[place])
}

/// As [`sample`] over the entries that [`top_p_mask`] keeps.
pub fn sample_top_p(p: f64, scores: &[f32], uniform: impl FnMut() -> f64) -> Option<usize> {
    sample_kept(scores, &top_p_mask(p, scores), uniform)
}

/// As [`sample`] over the entries that [`nucleus_mask`] keeps.
pub fn sample_nucleus(p: f64, scores: &[f32], uniform: impl FnMut() -> f64) -> Option<usize> {
    sample_kept(scores, &nucleus_mask(p, scores), uniform)
}

/// Indices of the `k` largest scores (all of them if there are fewer) in descending order of score.
pub fn top_k(k: usize, scores: &[f32]) -> Vec<usize> {
    Ranking::new(scores).iter().take(k).collect()
}

/// The reference's top-p rule: true for the entries whose cumulative probability, from the largest down and themselves
/// included, is at most `p`, and always for the largest. The entry that crosses `p` is left out.
///
/// `p` belongs in (0, 1]. Probabilities and their running sum have the reference's precision, f32, so that with `p` = 1
/// rounding may leave out the end of the tail, as there. [`nucleus_mask`] has neither peculiarity.
pub fn top_p_mask(p: f64, scores: &[f32]) -> Vec<bool> {
    mask(scores.len(), &top_p(p, scores))
}

/// What [`top_p_mask`] keeps.
fn top_p(p: f64, scores: &[f32]) -> Vec<usize> {
    let (mut kept, next) = lead(scores, |sum| sum as f32 <= p as f32);
    if kept.is_empty() {
        kept.extend(next);
    }
    kept
}

/// Sum of e^(score - top), what is no number left out. A short row is added up in f32 from the left, as in the reference; with
/// longer rows that would lose the small entries, so the sums of runs are added in f64.
fn total_weight(scores: &[f32], top: f32) -> f64 {
    if scores.len() <= SHORT {
        let weights = scores.iter().filter(|score| !score.is_nan()).map(|&score| weight(score, top));
        return f64::from(weights.fold(0.0, |sum, weight| sum + weight));
    }
    scores.chunks(RUN).map(|run| f64::from(sum_of_weights(run, top))).sum()
}

/// e^(score - top), to the nearest.
fn weight(score: f32, top: f32) -> f32 {
    f64::from(score - top).exp() as f32
}

/// The usual nucleus: true for the smallest set of largest entries whose probabilities sum to `p` or more, so the entry that
/// crosses `p` is kept (Holtzman et al., "The Curious Case of Neural Text Degeneration").
///
/// `p` belongs in (0, 1]; 1 keeps every entry above minus infinity.
pub fn nucleus_mask(p: f64, scores: &[f32]) -> Vec<bool> {
    mask(scores.len(), &nucleus(p, scores))
}

/// What [`nucleus_mask`] keeps.
fn nucleus(p: f64, scores: &[f32]) -> Vec<usize> {
    // at 1 the sum may arrive early by rounding
    let (mut kept, crossing) = lead(scores, |sum| p >= 1.0 || sum < p);
    kept.extend(crossing);
    kept
}

/// The most of the largest entries whose probabilities sum to what is `within`, and the next one.
fn lead(scores: &[f32], within: impl Fn(f64) -> bool) -> (Vec<usize>, Option<usize>) {
    let ranking = Ranking::new(scores);
    let scale = total_weight(scores, ranking.top()).recip() as f32;
    ranking.lead(scale, within)
}

fn mask(len: usize, kept: &[usize]) -> Vec<bool> {
    let mut mask = vec![false; len];
    kept.iter().for_each(|&index| mask[index] = true);
    mask
}

/// As [`sample`] over some entries; a uniform number is taken for each of all.
fn sample_kept(scores: &[f32], kept: &[bool], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    best(scores.iter().zip(kept).map(|(&score, kept)| {
        let uniform = uniform();
        if *kept { f64::from(score) + gumbel(uniform) } else { f64::NEG_INFINITY }
    }))
}

/// Standard Gumbel noise from a uniform number, kept finite at both ends.
fn gumbel(uniform: f64) -> f64 {
    -(-(uniform + 1e-10).ln() + 1e-10).ln()
}

/// First index of the largest value above minus infinity.
fn best(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best = None;
    let mut top = f64::NEG_INFINITY;
    for (index, value) in values.enumerate() {
        if value > top {
            (best, top) = (Some(index), value);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_choose_gives_none() {
        let closed = [f32::NEG_INFINITY; 3];
        for scores in [&closed[..], &[]] {
            assert_eq!(sample(scores, || 0.5), None);
            assert_eq!(sample_scaled(scores, 0.5, 0.0, || 0.5), None);
            assert_eq!(sample_top_k(1, scores, || 0.5), None);
            assert_eq!(sample_top_k(2, scores, || 0.5), None);
            assert_eq!(sample_top_p(0.5, scores, || 0.5), None);
            assert_eq!(sample_nucleus(0.5, scores, || 0.5), None);
        }
        assert_eq!(sample_categorical(&[0.0, 0.0], || 0.5), None);
        assert_eq!(sample_categorical(&[], || 0.5), None);
    }

    #[test]
    fn ties_go_to_the_lowest_index_and_extreme_uniforms_stay_finite() {
        assert_eq!(sample_top_k(1, &[1.0, 3.0, 3.0], || 0.0), Some(1));
        assert_eq!(sample(&[2.0, 2.0], || 0.0), Some(0));
        assert_eq!(sample_categorical(&[0.0, 0.5, 0.5], || 0.5), Some(1));
        assert_eq!(top_k(2, &[1.0, 3.0, 0.0, 3.0]), [1, 3]);
        for u in [0.0, f64::from((1u32 << 24) - 1) / f64::from(1u32 << 24), 1.0f64.next_down()] {
            assert!(gumbel(u).is_finite());
            assert!((1.0 / (1e-10 - (u + 1e-10).ln())).is_finite());
        }
    }

    #[test]
    fn the_crossing_entry_is_what_nucleus_and_top_p_differ_in() {
        let scores = [1f32.ln(), f32::NEG_INFINITY, 5f32.ln(), 2f32.ln()];
        // probabilities 0.125, 0, 0.625, 0.25
        assert_eq!(top_p_mask(0.7, &scores), [false, false, true, false]);
        assert_eq!(nucleus_mask(0.7, &scores), [false, false, true, true]);
        assert_eq!(top_p_mask(0.88, &scores), [false, false, true, true]);
        assert_eq!(nucleus_mask(0.88, &scores), [true, false, true, true]);
        // the largest stays however small p is
        assert_eq!(top_p_mask(0.1, &scores), nucleus_mask(0.1, &scores));
        assert_eq!(nucleus_mask(1.0, &scores), [true, false, true, true]);
    }

    #[test]
    fn a_long_tail_is_not_lost_in_the_sum() {
        // each weight is below half a step of f32 beside the first
        let scores: Vec<f32> = (0..1_000_000).map(|index| if index == 0 { 0.0 } else { -17.0 }).collect();
        let share = 1.0 / (1.0 + 999_999.0 * (-17f64).exp());
        let kept = |p: f64| top_p_mask(p, &scores).iter().filter(|&&kept| kept).count();
        assert_eq!(kept(share - 1e-3), 1);
        let half = kept((1.0 + share) / 2.0);
        assert!((490_000..510_000).contains(&half), "{half}");
    }
}
