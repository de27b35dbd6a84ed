//! The sampling functions on the reference's logits with the reference's noise.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::Golden;
use ilm_model::sample::{sample, sample_top_k, sample_top_p};

fn check(name: &str, temperature: f32, choose: impl Fn(&[f32], &mut dyn FnMut() -> f64) -> Option<usize>) {
    let golden = Golden::open("nn.safetensors");
    let (logits, noise) = (golden.get("sample1d.logits"), golden.floats("sample1d.uniform"));
    let width = logits.shape[1];
    let expected = golden.ints(&format!("sample1d.{name}.index"));
    for (row, expected) in expected.iter().enumerate() {
        let scores: Vec<f32> =
            logits.floats[row * width..(row + 1) * width].iter().map(|logit| logit / temperature).collect();
        let mut noise = noise[row * width..(row + 1) * width].iter();
        let index = choose(&scores, &mut || f64::from(*noise.next().unwrap()));
        assert_eq!(index, Some(*expected as usize), "{name} row {row}");
    }
}

#[test]
fn golden_sample_one_dimension() {
    for temperature in ["1.0", "0.7"] {
        let value: f32 = temperature.parse().unwrap();
        check(&format!("plain.temperature_{temperature}"), value, |scores, noise| sample(scores, noise));
        for k in [1, 3, 50] {
            let name = format!("top_k_{k}.temperature_{temperature}");
            check(&name, value, |scores, noise| sample_top_k(k, scores, noise));
        }
        for p in ["0.05", "0.5", "0.9", "1.0"] {
            let name = format!("top_p_{p}.temperature_{temperature}");
            check(&name, value, |scores, noise| sample_top_p(p.parse().unwrap(), scores, noise));
        }
    }
}
