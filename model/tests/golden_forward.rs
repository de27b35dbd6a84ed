//! Hidden states, logits, decay groups and initial moments of every class against the reference.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::collections::BTreeSet;

use common::{Golden, assert_close, floats, manifest, model_of, shape_of};
use ilm_model::{
    AttentionMask, DenseBatch, Family, Model, ModelClass, ModelConfig, ModelShape, ParamEntry, Precision,
    Recompute, expected_length,
};

const FILES: [&str; 13] = [
    "model_rotary_base_nonorm_relu.safetensors",
    "model_rotary_base_norm_gelu_smallrot.safetensors",
    "model_rotary_it.safetensors",
    "model_rotary_ilm.safetensors",
    "model_rotary_classification.safetensors",
    "model_rotary_stopping.safetensors",
    "model_rotary_length.safetensors",
    "model_rotary_length_classes7.safetensors",
    "model_gpt2_base_nonorm.safetensors",
    "model_gpt2_ilm_norm_relu.safetensors",
    "model_gpt2_classification.safetensors",
    "model_gpt2_stopping.safetensors",
    "model_gpt2_length.safetensors",
];

/// One output of one case of inputs, at every place, padding included.
fn check_output(model: &Model, inputs: &Golden, case: &str, what: &str, expected: &[f32]) {
    // "..._no_positions" is the case before it without them
    let (inputs_of, given) = match case.strip_suffix("_no_positions") {
        Some(case) => (case, false),
        None => (case, true),
    };
    let ids = inputs.get(&format!("{inputs_of}.x"));
    let mask: Option<Vec<bool>> = inputs
        .find(&format!("{inputs_of}.attention_mask"))
        .map(|mask| mask.ints.iter().map(|&value| value != 0).collect());
    let positions = inputs.get(&format!("{inputs_of}.positions"));
    // the reference's GPT-2 models always read index 0
    let cls = inputs
        .find(&format!("{inputs_of}.cls_position"))
        .filter(|_| model.shape().config.class.family() == Family::Rotary);
    let batch = DenseBatch {
        rows: ids.shape[0],
        width: ids.shape[1],
        tokens: &ids.ints,
        positions: given.then_some(positions.ints.as_slice()),
        mask: match &mask {
            None => AttentionMask::None,
            Some(mask) if mask.len() == ids.ints.len() => AttentionMask::Keys(mask),
            Some(mask) => AttentionMask::Pairs(mask),
        },
        cls: cls.map(|cls| cls.ints.as_slice()),
    };
    let output = model.dense(&batch).unwrap();
    let found = match what {
        "hidden" => output.hidden,
        "vocab_logits" => output.token_logits,
        "class_logits" => output.class_logits.unwrap(),
        other => panic!("unknown output {other}"),
    };
    assert_close(&format!("{case}.{what}"), &floats(&found), expected, 1e-5, 1e-5);
}

#[test]
fn golden_outputs_of_every_class_at_every_place() {
    let inputs = Golden::open("model_inputs.safetensors");
    for file in FILES {
        let golden = Golden::open(file);
        let model = model_of(file);
        let mut compared = 0;
        for (name, expected) in golden.under("out.") {
            let (case, what) = name.split_once('.').unwrap();
            check_output(&model, &inputs, case, what, &expected.floats);
            compared += 1;
        }
        assert!(compared >= 6, "{file}");
        if let Some(logits) = golden.find("mean_delta_l.logits") {
            let found = logits.floats.chunks(logits.shape[1]).map(|row| expected_length(row) as f32);
            let found: Vec<f32> = found.collect();
            assert_close("mean_delta_l", &found, golden.floats("mean_delta_l.out"), 1e-5, 1e-5);
        }
        // parameters are read by `model_of`, which counts them
        golden.assert_all_used(&["param."]);
    }
    inputs.assert_all_used(&[]);
}

#[test]
fn golden_rotary_buffers() {
    for file in FILES.iter().filter(|file| file.contains("rotary")) {
        let golden = Golden::open(file);
        let dim = manifest(file)["kwargs"]["rotary_emb_dim"].as_i64().unwrap();
        let expected: Vec<f32> =
            (0..dim / 2).map(|i| 1.0 / 10_000f32.powf((2 * i) as f32 / dim as f32)).collect();
        let buffers: Vec<_> = golden.under("param.").filter(|(name, _)| name.ends_with("inv_freq")).collect();
        assert!(!buffers.is_empty());
        for (name, buffer) in buffers {
            assert_close(name, &buffer.floats, &expected, 1e-6, 1e-6);
        }
    }
}

#[test]
fn golden_decay_groups() {
    for file in FILES {
        let config = manifest(file);
        let model =
            Model::new(shape_of(config["class_name"].as_str().unwrap(), &config["kwargs"]), 0).unwrap();
        for (key, decays) in [("weight_decay", true), ("no_weight_decay", false)] {
            let entries = model.arena().layout().entries();
            let found: BTreeSet<&str> = entries
                .iter()
                .filter(|entry| entry.decays() == decays)
                .map(|entry| entry.name.as_str())
                .collect();
            let expected: BTreeSet<&str> =
                config[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(found, expected, "{file}");
        }
    }
}

#[test]
fn golden_initial_moments() {
    let text = std::fs::read_to_string(test_support::golden_dir().join("init_stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, class) in
        [("rotary_stopping", ModelClass::RotaryStopping), ("gpt2_stopping", ModelClass::Gpt2Stopping)]
    {
        let config = ModelConfig { class, d_model: 192, num_layers: 3, nhead: 3, ..ModelConfig::default() };
        let shape = ModelShape {
            config,
            num_embeddings: 211,
            padding_idx: 0,
            max_length: if class.family() == Family::Gpt2 { 1024 } else { 64 },
            precision: Precision::Fp32,
            recompute: Recompute::None,
        };
        let model = Model::new(shape, 5).unwrap();
        let entries = model.arena().layout().entries();
        assert_eq!(entries.len(), stats[key].as_object().unwrap().len());
        entries.iter().for_each(|entry| check_moments(&model, entry, &stats[key][&entry.name]));
        let padding_is_zero = model.arena().params()[..192].iter().all(|&value| value == 0.0);
        let family = key.split_once('_').unwrap().0;
        assert_eq!(padding_is_zero, stats[format!("{family}_padding_row_is_zero")].as_bool().unwrap());
    }
    // quirk 12: layers of one start only on request
    assert!(stats["rotary_layers_start_equal"].as_bool().unwrap());
}

fn check_moments(model: &Model, entry: &ParamEntry, expected: &serde_json::Value) {
    let name = &entry.name;
    assert_eq!(expected["shape"], serde_json::json!(entry.shape), "{name}");
    let values = &model.arena().params()[entry.range()];
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let std = (values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count).sqrt();
    let reference = |key: &str| expected[key].as_f64().unwrap();
    // five standard errors of the mean and of the standard deviation, for each of the two draws
    let error = 10.0 * reference("std") / count.sqrt() + 1e-12;
    assert!((mean - reference("mean")).abs() <= error, "{name} mean {mean}");
    assert!((std - reference("std")).abs() <= error, "{name} std {std}");
    let largest = values.iter().fold(0f64, |top, &value| top.max(f64::from(value.abs())));
    // the largest of many normal values varies more than that of uniform ones
    let slack = if name.contains("embed") || name.contains("transformer") || name == "lm_head.weight" {
        1.5
    } else {
        1.05
    };
    let bound = reference("max").max(-reference("min"));
    assert!(largest <= bound * slack + 1e-9, "{name} reaches {largest}, the reference {bound}");
}
