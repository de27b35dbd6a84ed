//! Logits, class logits and initial moments against the reference.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Golden, Packed, assert_close, floats, load_model, manifest, shape_of};
use ilm_model::StoppingModel;

const FILE: &str = "model_rotary_stopping.safetensors";

#[test]
fn golden_model_outputs_at_real_positions() {
    let golden = Golden::open(FILE);
    let inputs = Golden::open("model_inputs.safetensors");
    let shape = shape_of(&manifest(FILE)["kwargs"]);
    let model = load_model(shape.clone(), &golden);
    for case in ["nomask", "rightpad", "rightpad_int_mask", "leftpad", "permuted_positions"] {
        let ids = inputs.get(&format!("{case}.x"));
        let (rows, width) = (ids.shape[0], ids.shape[1]);
        let all = vec![1; rows * width];
        let mask = inputs.find(&format!("{case}.attention_mask")).map_or(&all, |mask| &mask.ints);
        let zeros = vec![0; rows];
        let given = inputs.find(&format!("{case}.cls_position")).map_or(&zeros, |cls| &cls.ints);
        // some cases point at padding, whose hidden state packed rows do not have
        let is_real = |row: usize| mask[row * width + given[row] as usize] != 0;
        let first_real = |row: usize| mask[row * width..].iter().position(|&real| real != 0).unwrap() as i64;
        let cls: Vec<i64> =
            (0..rows).map(|row| if is_real(row) { given[row] } else { first_real(row) }).collect();
        let positions = inputs.ints(&format!("{case}.positions"));
        let packed = Packed::from_padded(width, &ids.ints, mask, Some(positions), &cls, &[]);
        let (tokens, classes) = model.logits(&packed.batch()).unwrap();
        let v = shape.num_embeddings as usize;
        let expected = golden.floats(&format!("out.{case}.vocab_logits"));
        let expected: Vec<f32> =
            packed.source.iter().flat_map(|&at| expected[at * v..(at + 1) * v].to_vec()).collect();
        assert_close(case, &floats(&tokens), &expected, 1e-5, 1e-5);
        let expected = golden.floats(&format!("out.{case}.class_logits"));
        let classes = floats(&classes);
        for row in (0..rows).filter(|&row| is_real(row)) {
            assert_close(case, &classes[2 * row..][..2], &expected[2 * row..][..2], 1e-5, 1e-5);
        }
    }
}

#[test]
fn golden_decay_groups() {
    let config = manifest(FILE);
    let model = StoppingModel::new(shape_of(&config["kwargs"]), 0).unwrap();
    for (key, decay) in [("weight_decay", true), ("no_weight_decay", false)] {
        let found: Vec<&str> = model
            .arena()
            .layout()
            .entries()
            .iter()
            .filter(|entry| entry.decay == decay)
            .map(|entry| entry.name.as_str())
            .collect();
        let expected: Vec<&str> =
            config[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn golden_initial_moments() {
    let text = std::fs::read_to_string(test_support::golden_dir().join("init_stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let stats = &stats["rotary_stopping"];
    let config = ilm_model::ModelConfig {
        d_model: 192,
        num_layers: 3,
        nhead: 3,
        rotary_emb_dim: 64,
        ..ilm_model::ModelConfig::default()
    };
    let shape = ilm_model::ModelShape {
        config,
        num_embeddings: 211,
        padding_idx: 0,
        max_length: 64,
        precision: ilm_model::Precision::Fp32,
    };
    let model = StoppingModel::new(shape, 5).unwrap();
    for entry in model.arena().layout().entries() {
        let expected = &stats[&entry.name];
        assert_eq!(expected["shape"], serde_json::json!(entry.shape), "{}", entry.name);
        let values = &model.arena().params()[entry.range()];
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let std = (values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count).sqrt();
        let reference = |key: &str| expected[key].as_f64().unwrap();
        // five standard errors of the mean and of the standard deviation, for each of the two draws
        let error = 10.0 * reference("std") / count.sqrt() + 1e-12;
        assert!((mean - reference("mean")).abs() <= error, "{} mean {mean}", entry.name);
        assert!((std - reference("std")).abs() <= error, "{} std {std}", entry.name);
        let largest = values.iter().fold(0f64, |top, &value| top.max(f64::from(value.abs())));
        if !entry.name.starts_with("embed") {
            let bound = reference("max").max(-reference("min"));
            assert!(
                largest <= bound * 1.05 + 1e-9,
                "{} reaches {largest}, the reference {bound}",
                entry.name
            );
        }
    }
    let width = 192;
    assert!(model.arena().params()[..width].iter().all(|&value| value == 0.0), "the padding row is zero");
}
