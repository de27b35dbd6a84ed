//! The helpers over positions and tokens against the reference.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Array, Golden, assert_close};
use ilm_model::nn::{Draw, Entry, Place, Scores, keep_tokens, remove_tokens};
use ilm_model::sample::sample_top_k;

const PAD: i64 = 0;

/// The examples of a (B, S, V) tensor.
fn examples(array: &Array) -> impl Iterator<Item = Scores<'_>> {
    let [_, height, width] = array.shape[..] else { panic!("{:?} is not (B, S, V)", array.shape) };
    array.floats.chunks(height * width).map(move |values| Scores::new(values, width).unwrap())
}

fn both(place: Place) -> [i64; 2] {
    [place.row as i64, place.column as i64]
}

#[test]
fn golden_nn_remove_tokens() {
    let golden = Golden::open("nn.safetensors");
    let ids = golden.get("remove_tokens.int.token_ids");
    let unwanted = golden.ints("remove_tokens.tensor.ids_to_remove");
    let width = ids.shape[1];
    for (at, ids) in ids.ints.chunks(width).enumerate() {
        let row = at * width..(at + 1) * width;
        let expected = |case: &str| &golden.ints(&format!("remove_tokens.{case}.out"))[row.clone()];
        assert_eq!(remove_tokens(ids, &[3], PAD), expected("int"));
        assert_eq!(remove_tokens(ids, unwanted, PAD), expected("tensor"));
        let keep = &golden.ints("remove_tokens.mask.non_mask")[row.clone()];
        let keep: Vec<bool> = keep.iter().map(|&keep| keep != 0).collect();
        assert_eq!(keep_tokens(ids, &keep, PAD).unwrap(), expected("mask"));
    }
}

#[test]
fn golden_nn_log_softmax() {
    let golden = Golden::open("nn.safetensors");
    for case in ["plain", "large"] {
        let out: Vec<f32> = examples(golden.get(&format!("log_softmax.{case}.x")))
            .flat_map(|scores| scores.log_softmax())
            .collect();
        assert_close(case, &out, golden.floats(&format!("log_softmax.{case}.out")), 1e-6, 1e-6);
    }
}

#[test]
fn golden_nn_masked_ce() {
    let golden = Golden::open("nn.safetensors");
    let logits = golden.get("masked_ce.logits");
    let (height, size) = (logits.shape[1], logits.shape[1] * logits.shape[2]);
    let targets = golden.floats("masked_ce.target").chunks(size);
    let masks = golden.ints("masked_ce.mask").chunks(height);
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for ((scores, target), mask) in examples(logits).zip(targets).zip(masks) {
        let forbidden: Vec<bool> = mask.iter().map(|&forbidden| forbidden != 0).collect();
        let ce = scores.masked_ce(target, &forbidden).unwrap();
        losses.push(ce.loss as f32);
        gradients.extend(ce.gradient);
    }
    assert_close("loss", &losses, golden.floats("masked_ce.out"), 1e-6, 1e-6);
    assert_close("gradient", &gradients, golden.floats("masked_ce.grad_logits_of_sum"), 1e-7, 1e-5);
}

#[test]
fn golden_nn_top_k() {
    let golden = Golden::open("nn.safetensors");
    for k in [1, 5] {
        let entries: Vec<Entry> =
            examples(golden.get("log_softmax.plain.x")).flat_map(|scores| scores.top_k(k)).collect();
        let values: Vec<f32> = entries.iter().map(|entry| entry.value).collect();
        let indices: Vec<i64> = entries.iter().flat_map(|entry| both(entry.place)).collect();
        assert_eq!(values, golden.floats(&format!("topk.{k}.values")));
        assert_eq!(indices, golden.ints(&format!("topk.{k}.indices")));
    }
}

#[test]
fn golden_nn_max() {
    let golden = Golden::open("nn.safetensors");
    for (at, scores) in examples(golden.get("log_softmax.plain.x")).enumerate() {
        let Entry { place, value } = scores.max().unwrap();
        assert_eq!(value, golden.floats("max.values")[at]);
        assert_eq!(both(place), ["max.index_1", "max.index_2"].map(|name| golden.ints(name)[at]));
    }
}

#[test]
fn golden_nn_sample() {
    let golden = Golden::open("nn.safetensors");
    let top: Draw<'_> = &|scores, uniform| sample_top_k(1, scores, uniform);
    let noise = &mut || panic!("the largest entry needs no noise");
    let logits = golden.get("sample2d.logits");
    for (at, scores) in examples(logits).enumerate() {
        let expected =
            |case: &str| ["seq", "vocab"].map(|index| golden.ints(&format!("sample2d.{case}.{index}"))[at]);
        assert_eq!(both(scores.sample(top, noise).unwrap()), expected("joint"));
        assert_eq!(both(scores.general_sample(top, None, noise).unwrap()), expected("general_no_second"));
        assert_eq!(both(scores.general_sample(top, Some(top), noise).unwrap()), expected("general_two_step"));
    }
    let positions: Vec<f32> = examples(logits).flat_map(|scores| scores.position_scores()).collect();
    for (found, expected) in positions.iter().zip(golden.floats("sample2d.seq_logits")) {
        assert!(found == expected || (found - expected).abs() <= 1e-6, "{found} instead of {expected}");
    }
    assert_eq!(positions.len(), golden.floats("sample2d.seq_logits").len());
}

#[test]
fn golden_nn_has_no_other_groups() {
    let golden = Golden::open("nn.safetensors");
    let known = ["log_softmax", "masked_ce", "max", "remove_tokens", "sample1d", "sample2d", "topk"];
    let groups: std::collections::BTreeSet<&str> =
        golden.under("").map(|(name, _)| name.split('.').next().unwrap()).collect();
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), known);
}
