//! Judges against what the Python library transformers finds with the same weights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;

use ilm_model::judge::{Judge, JudgeConfig};
use ilm_model::{Error, Precision};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::Device;

#[derive(Deserialize)]
struct Expected {
    max_length: usize,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    tokens: Vec<i64>,
    log_likelihoods: Vec<f64>,
}

/// Parameters by name, with their shapes.
type Parameters = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

fn read(family: &str, file: &str) -> String {
    fs::read_to_string(test_support::judges_dir().join(family).join(file)).unwrap()
}

fn parameters(family: &str) -> Parameters {
    let mut parameters = Parameters::new();
    for entry in fs::read_dir(test_support::judges_dir().join(family)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let name = name.trim_start_matches("transformer.").trim_start_matches("model.").to_owned();
            let shape = tensor.shape().iter().map(|&size| size as u64).collect();
            let values = match tensor.dtype() {
                Dtype::F32 => tensor.data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect(),
                _ => tensor.data().as_chunks().0.iter().map(|&bits| widened(bits)).collect(),
            };
            parameters.insert(name, (shape, values));
        }
    }
    parameters
}

fn widened(bf16: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bf16)) << 16)
}

fn load(family: &str, config: &str, precision: Precision) -> Result<Judge, Error> {
    let config: JudgeConfig = serde_json::from_str(config).unwrap();
    let mut parameters = parameters(family);
    let judge = Judge::load(&config, Device::Cpu, precision, |name, shape| {
        let (found, values) = parameters.remove(name).ok_or_else(|| Error::UnknownParameter(name.into()))?;
        if found == shape { Ok(values) } else { Err(Error::Config(format!("{name} is no {shape:?}"))) }
    })?;
    assert!(parameters.is_empty(), "{:?} are not read", parameters.keys());
    Ok(judge)
}

fn expected(family: &str, file: &str) -> Expected {
    serde_json::from_str(&read(family, file)).unwrap()
}

/// The largest difference to what is expected.
fn largest_difference(judge: &Judge, texts: &[&Text]) -> f64 {
    let tokens: Vec<&[i64]> = texts.iter().map(|text| text.tokens.as_slice()).collect();
    let found = judge.log_likelihoods(&tokens).unwrap();
    assert_eq!(found.len(), texts.len());
    let differences = found.iter().zip(texts).flat_map(|(found, text)| {
        assert_eq!(found.len(), text.log_likelihoods.len());
        found.iter().zip(&text.log_likelihoods).map(|(found, expected)| (found - expected).abs())
    });
    differences.fold(0.0, f64::max)
}

/// Single precision by another order of additions differs by 2e-5 at most; every other activation, epsilon or rotation by 3e-4 or more.
#[test]
fn judges_find_what_transformers_finds() {
    for (family, config, expected_file) in [
        ("gpt2", "config.json", "expected.json"),
        ("gpt2", "config-scaled.json", "expected-scaled.json"),
        ("llama", "config.json", "expected.json"),
        ("llama", "config-classic.json", "expected.json"),
        ("llama-biased", "config.json", "expected.json"),
    ] {
        let judge = load(family, &read(family, config), Precision::Fp32).unwrap();
        let expected = expected(family, expected_file);
        assert_eq!((judge.max_length(), judge.vocab_size()), (expected.max_length, 320));
        let all: Vec<&Text> = expected.texts.iter().collect();
        for texts in all.chunks(1).chain([&all[..]]) {
            let difference = largest_difference(&judge, texts);
            assert!(difference < 5e-5, "{family}: {difference}");
        }
        let rounded = load(family, &read(family, config), Precision::Bf16).unwrap();
        let difference = largest_difference(&rounded, &all);
        assert!((1e-5..0.3).contains(&difference), "{family} in bf16: {difference}");
    }
}

#[test]
fn what_a_judge_cannot_read_is_refused() {
    let judge = load("gpt2", &read("gpt2", "config.json"), Precision::Fp32).unwrap();
    let sentence = |text: &[i64]| judge.log_likelihoods(&[text]).unwrap_err().to_string();
    assert_eq!(sentence(&[1; 49]), "a text of 49 tokens is above the 48 of the judge");
    let unknown = "token 320 is none of the judge's 320; its tokenizer.json is of another model";
    assert_eq!(sentence(&[1, 320]), unknown);
    assert!(sentence(&[-1, 3]).contains("token -1"));
    assert_eq!(judge.log_likelihoods(&[]).unwrap(), Vec::<Vec<f64>>::new());
    assert_eq!(judge.log_likelihoods(&[&[], &[7]]).unwrap(), vec![Vec::<f64>::new(); 2]);
    let stopped = judge.log_likelihoods_unless(&|| true, &[&[1, 2, 3]]).unwrap();
    assert_eq!(stopped, None);
}

#[test]
fn settings_that_would_change_what_is_computed_are_refused() {
    for (family, from, to, named) in [
        ("gpt2", "gelu_new", "quick_gelu", "activation_function = quick_gelu"),
        ("gpt2", "\"n_head\": 4", "\"n_head\": 5", "n_head = 5"),
        ("llama", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_attention_heads = 4"),
        ("llama", "\"mlp_bias\": false", "\"mlp_bias\": true", "no parameter 'layers.0.mlp.gate_proj.bias'"),
        (
            "llama",
            "\"head_dim\": 8",
            "\"head_dim\": 1152921504606846976",
            "q_proj.weight is no [4611686018427387904, 32]",
        ),
        ("llama", "silu", "gelu", "hidden_act = gelu"),
        ("llama", "llama3", "yarn", "rope_type = yarn"),
        ("llama", "\"factor\": 32.0,", "", "lacks factor"),
    ] {
        let config = read(family, "config.json");
        let changed = config.replace(from, to);
        assert_ne!(config, changed);
        let sentence = load(family, &changed, Precision::Fp32).unwrap_err().to_string();
        assert!(sentence.contains(named), "{sentence}");
    }
    let unknown =
        serde_json::from_str::<JudgeConfig>("{\"model_type\": \"mistral\"}").unwrap_err().to_string();
    assert!(unknown.contains("expected `gpt2` or `llama`"), "{unknown}");
}
