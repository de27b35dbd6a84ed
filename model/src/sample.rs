//! Drawing one of several scored choices with Gumbel noise, as the reference defines it.
//!
//! Scores are logits; an entry of minus infinity is never chosen, ties go to the lowest index, and every function returns
//! none if there is nothing to choose. `uniform` gives numbers in [0, 1), one for each entry considered, in their order.

use std::cmp::Ordering;

/// One entry with probability softmax(scores): the largest of score + Gumbel noise.
pub fn sample(scores: &[f32], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    best(scores.iter().map(|&score| f64::from(score) + gumbel(uniform())))
}

/// As [`sample`] over the `k` largest scores; `k` = 1 is the argmax. Noise is taken in descending order of score.
pub fn sample_top_k(k: usize, scores: &[f32], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    if k == 1 {
        return best(scores.iter().map(|&score| f64::from(score)));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if k < order.len() {
        order.select_nth_unstable_by(k, |&a, &b| descending(scores, a, b));
        order.truncate(k);
    }
    order.sort_unstable_by(|&a, &b| descending(scores, a, b));
    best(order.iter().map(|&index| f64::from(scores[index]) + gumbel(uniform()))).map(|place| order[place])
}

/// As [`sample`] over the entries whose cumulative probability, from the largest down and themselves included, is at most
/// `p`, and always the largest.
pub fn sample_top_p(p: f64, scores: &[f32], mut uniform: impl FnMut() -> f64) -> Option<usize> {
    let kept = nucleus(p, scores);
    best(scores.iter().zip(kept).map(|(&score, kept)| {
        let noise = gumbel(uniform());
        if kept { f64::from(score) + noise } else { f64::NEG_INFINITY }
    }))
}

/// Which entries [`sample_top_p`] may choose.
fn nucleus(p: f64, scores: &[f32]) -> Vec<bool> {
    let mut order: Vec<usize> =
        (0..scores.len()).filter(|&index| scores[index] > f32::NEG_INFINITY).collect();
    order.sort_unstable_by(|&a, &b| descending(scores, a, b));
    let mut kept = vec![false; scores.len()];
    let Some(&top) = order.first() else { return kept };
    let weight = |index: usize| f64::from(scores[index] - scores[top]).exp();
    let total: f64 = order.iter().map(|&index| weight(index)).sum();
    kept[top] = true;
    let mut cumulative = 0.0;
    for &index in &order {
        cumulative += weight(index) / total;
        // the comparison is made in f32, the precision of the reference's running sum
        if cumulative as f32 > p as f32 {
            break;
        }
        kept[index] = true;
    }
    kept
}

/// Standard Gumbel noise from a uniform number, kept finite at both ends.
fn gumbel(uniform: f64) -> f64 {
    -(-(uniform + 1e-10).ln() + 1e-10).ln()
}

/// Largest first, then lowest index.
fn descending(scores: &[f32], a: usize, b: usize) -> Ordering {
    scores[b].total_cmp(&scores[a]).then(a.cmp(&b))
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
    use crate::random::{Purpose, keyed_rng, uniform};

    #[test]
    fn nothing_to_choose_gives_none() {
        let closed = [f32::NEG_INFINITY; 3];
        for scores in [&closed[..], &[]] {
            assert_eq!(sample(scores, || 0.5), None);
            assert_eq!(sample_top_k(1, scores, || 0.5), None);
            assert_eq!(sample_top_k(2, scores, || 0.5), None);
            assert_eq!(sample_top_p(0.5, scores, || 0.5), None);
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index_and_extreme_uniforms_stay_finite() {
        assert_eq!(sample_top_k(1, &[1.0, 3.0, 3.0], || 0.0), Some(1));
        assert_eq!(sample(&[2.0, 2.0], || 0.0), Some(0));
        for u in [0.0, f64::from((1u32 << 24) - 1) / f64::from(1u32 << 24)] {
            assert!(gumbel(u).is_finite());
        }
    }

    #[test]
    fn frequencies_follow_the_softmax_of_the_kept_entries() {
        let scores = [0.0f32, 2f32.ln(), f32::NEG_INFINITY, 5f32.ln()];
        let mut rng = keyed_rng(3, Purpose::Predict, 0, 0);
        let mut count = |choose: &mut dyn FnMut(&mut dyn FnMut() -> f64) -> Option<usize>| {
            let mut counts = [0f64; 4];
            for _ in 0..20_000 {
                counts[choose(&mut || uniform(&mut rng)).unwrap()] += 1.0 / 20_000.0;
            }
            counts
        };
        let close = |counts: [f64; 4], expected: [f64; 4]| {
            assert!(counts.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02), "{counts:?}");
        };
        close(count(&mut |u| sample(&scores, u)), [0.125, 0.25, 0.0, 0.625]);
        close(count(&mut |u| sample_top_k(2, &scores, u)), [0.0, 2.0 / 7.0, 0.0, 5.0 / 7.0]);
        // 0.625 + 0.25 = 0.875 fits under 0.88; the entry that would cross it is left out
        close(count(&mut |u| sample_top_p(0.88, &scores, u)), [0.0, 2.0 / 7.0, 0.0, 5.0 / 7.0]);
        close(count(&mut |u| sample_top_p(0.1, &scores, u)), [0.0, 0.0, 0.0, 1.0]);
    }
}
