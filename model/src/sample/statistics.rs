//! Chi-square tests of every sampler against the exact probabilities of its choices.

use super::*;
use crate::chi_square::{excess, normalized};
use crate::random::{Purpose, keyed_rng, uniform};

/// Probabilities in 64ths; the third entry can never be chosen.
const SHARES: [f64; 8] = [3.0, 20.0, 0.0, 1.0, 12.0, 4.0, 16.0, 8.0];

fn scores() -> Vec<f32> {
    SHARES.map(|share| share.ln() as f32 - 1.5).to_vec()
}

/// [`excess`] of a sampler that should choose in proportion to `weights`, with the stream of `seed`.
fn excess_of(seed: u64, weights: &[f64], choose: impl Fn(&mut dyn FnMut() -> f64) -> Option<usize>) -> f64 {
    let mut rng = keyed_rng(seed, Purpose::Predict, 0, 0);
    excess(&normalized(weights), || choose(&mut || uniform(&mut rng)).unwrap())
}

/// The shares of the entries of at least `least`.
fn at_least(least: f64) -> [f64; 8] {
    SHARES.map(|share| if share >= least { share } else { 0.0 })
}

#[test]
fn plain_samples_follow_the_softmax() {
    let scores = scores();
    assert!(excess_of(11, &SHARES, |u| sample(&scores, u)) < 1.0);
    let cooler = SHARES.map(|share| share.powf(1.0 / 0.7));
    assert!(excess_of(12, &cooler, |u| sample_scaled(&scores, 0.7, 1.0, u)) < 1.0);
    // half the noise is half the temperature
    let squares = SHARES.map(|share| share.powi(2));
    assert!(excess_of(13, &squares, |u| sample_scaled(&scores, 1.0, 0.5, u)) < 1.0);
}

#[test]
fn categorical_samples_follow_the_probabilities() {
    let probabilities = SHARES.map(|share| share as f32 / 64.0);
    assert!(excess_of(14, &SHARES, |u| sample_categorical(&probabilities, u)) < 1.0);
}

#[test]
fn top_k_samples_follow_the_softmax_of_the_kept() {
    let scores = scores();
    assert!(excess_of(15, &at_least(12.0), |u| sample_top_k(3, &scores, u)) < 1.0);
    assert!(excess_of(16, &SHARES, |u| sample_top_k(50, &scores, u)) < 1.0);
}

#[test]
fn top_p_samples_follow_the_softmax_of_the_kept() {
    let scores = scores();
    // 20 + 16 + 12 = 48 of 64 are at most 0.8; 8 more would cross it
    assert!(excess_of(17, &at_least(12.0), |u| sample_top_p(0.8, &scores, u)) < 1.0);
}

#[test]
fn nucleus_samples_follow_the_softmax_of_the_kept() {
    let scores = scores();
    assert!(excess_of(18, &at_least(8.0), |u| sample_nucleus(0.8, &scores, u)) < 1.0);
    assert!(excess_of(19, &SHARES, |u| sample_nucleus(1.0, &scores, u)) < 1.0);
}

#[test]
fn wrong_samplers_are_noticed() {
    let scores = scores();
    // a temperature off by 2 %, the other top-p rule, one noise for two entries, noise without its second logarithm
    assert!(excess_of(20, &SHARES, |u| sample_scaled(&scores, 1.02, 1.0, u)) > 1.0);
    assert!(excess_of(21, &at_least(8.0), |u| sample_top_p(0.8, &scores, u)) > 1.0);
    let shared = |u: &mut dyn FnMut() -> f64| {
        let mut last = None;
        sample(&scores, || match last.take() {
            Some(noise) => noise,
            None => *last.insert(u()),
        })
    };
    assert!(excess_of(22, &SHARES, shared) > 1.0);
    let exponential =
        |u: &mut dyn FnMut() -> f64| best(scores.iter().map(|&score| f64::from(score) - (1.0 - u()).ln()));
    assert!(excess_of(23, &SHARES, exponential) > 1.0);
}
