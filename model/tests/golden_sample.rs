//! The sampling functions on the reference's logits with the reference's noise.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Array, Golden};
use ilm_model::nn::Scores;
use ilm_model::sample::{
    sample, sample_categorical, sample_scaled, sample_top_k, sample_top_p, top_k, top_p_mask,
};

/// A row's scores after the temperature, and the noise drawn for it.
struct Row<'a> {
    logits: &'a [f32],
    scores: Vec<f32>,
    noise: &'a [f32],
}

impl Row<'_> {
    fn noise(&self) -> impl FnMut() -> f64 {
        let mut noise = self.noise.iter();
        move || f64::from(*noise.next().unwrap())
    }

    fn probabilities(&self) -> Vec<f32> {
        let log_p = Scores::new(self.logits, self.logits.len()).unwrap().log_softmax();
        log_p.iter().map(|log_p| log_p.exp()).collect()
    }
}

/// Compares one tensor, which is named `function[_parameter][.temperature_T].quantity`.
fn check(golden: &Golden, name: &str, expected: &Array) {
    let (case, quantity) = name.rsplit_once('.').unwrap();
    let (function, temperature) = match case.split_once(".temperature_") {
        Some((function, temperature)) => (function, temperature.parse().unwrap()),
        None => (case, 1f32),
    };
    let logits = golden.get("sample1d.logits");
    let (width, per_row) = (logits.shape[1], expected.shape.get(1).copied().unwrap_or(1));
    for (index, logits) in logits.floats.chunks(width).enumerate() {
        let row = Row {
            logits,
            scores: logits.iter().map(|logit| logit / temperature).collect(),
            noise: &golden.floats("sample1d.uniform")[index * width..(index + 1) * width],
        };
        let span = index * per_row..(index + 1) * per_row;
        match quantity {
            "index" => {
                let chosen = choose(function, temperature, &row).map(|chosen| chosen as i64);
                assert_eq!(chosen, Some(expected.ints[index]), "{name} row {index}");
            }
            _ => assert_eq!(kept(function, &row), expected.floats[span], "{name} row {index}"),
        }
    }
}

fn choose(function: &str, temperature: f32, row: &Row<'_>) -> Option<usize> {
    match function {
        "plain" => {
            let chosen = sample(&row.scores, row.noise());
            assert_eq!(sample_scaled(row.logits, temperature, 1.0, row.noise()), chosen);
            chosen
        }
        "plain.noise_0" => sample_scaled(row.logits, temperature, 0.0, row.noise()),
        "categorical" => sample_categorical(&row.probabilities(), row.noise()),
        _ => match parameter(function) {
            ("top_k", k) => sample_top_k(k.parse().unwrap(), &row.scores, row.noise()),
            ("top_p", p) => sample_top_p(p.parse().unwrap(), &row.scores, row.noise()),
            _ => panic!("{function} is of no known function"),
        },
    }
}

/// The largest scores in descending order, or all with minus infinity for those left out.
fn kept(function: &str, row: &Row<'_>) -> Vec<f32> {
    match parameter(function) {
        ("top_k", k) => {
            top_k(k.parse().unwrap(), &row.scores).into_iter().map(|index| row.scores[index]).collect()
        }
        ("top_p", p) => (row.scores.iter().zip(top_p_mask(p.parse().unwrap(), &row.scores)))
            .map(|(&score, kept)| if kept { score } else { f32::NEG_INFINITY })
            .collect(),
        _ => panic!("{function} is of no known function"),
    }
}

/// `top_k_3` is `top_k` with 3.
fn parameter(function: &str) -> (&str, &str) {
    function.rsplit_once('_').unwrap_or((function, ""))
}

#[test]
fn golden_sample_one_dimension() {
    let golden = Golden::open("nn.safetensors");
    let mut compared = 0;
    for (name, expected) in golden.under("sample1d.") {
        if !["logits", "uniform"].contains(&name) {
            check(&golden, name, expected);
            compared += 1;
        }
    }
    assert_eq!(compared, 32);
}
