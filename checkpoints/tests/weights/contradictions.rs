//! Arguments that do not belong to the tensors, and tensors that belong to no model.

use std::fs;

use checkpoints::weights::{CONFIG_FILE, ReferenceConfig, WeightsError, WeightsFile};
use serde_json::{Value, json};

use super::common::{Golden, Raw, StateDict, open_bytes, refused, to_bytes};

/// What is said about a golden model if one argument is changed.
#[track_caller]
fn contradiction(name: &str, key: &str, value: Value) -> String {
    let golden = Golden::open(name);
    let mut config = serde_json::to_value(golden.config(true)).unwrap();
    config[key] = value;
    let file = open_bytes(&to_bytes(&golden.state)).unwrap();
    let error = refused(file.architecture(&serde_json::from_value(config).unwrap()));
    assert!(matches!(error, WeightsError::Contradiction { .. }), "{error}");
    let sentence = error.to_string();
    let (_, rest) = sentence.split_once(" has ").unwrap();
    rest.split_once(';').unwrap().0.to_string()
}

#[test]
fn a_contradiction_names_the_key_and_both_values() {
    for (name, key, value, sentence) in [
        ("rotary_stopping", "num_embeddings", json!(24), "num_embeddings = 24 but the tensors have 23"),
        ("rotary_stopping", "d_model", json!(64), "d_model = 64 but the tensors have 32"),
        ("rotary_stopping", "num_layers", json!(3), "num_layers = 3 but the tensors have 2"),
        ("rotary_stopping", "dim_feedforward", json!(128), "dim_feedforward = 128 but the tensors have 64"),
        (
            "rotary_stopping",
            "rotary_emb_dim",
            json!(4),
            "rotary_emb_dim = 4 but the tensors have 4 frequencies",
        ),
        ("rotary_ilm", "num_classes", json!(5), "num_classes = 5 but the tensors have no class head"),
        ("rotary_classification", "num_classes", json!(7), "num_classes = 7 but the tensors have 5 classes"),
        ("rotary_length", "max_length", json!(25), "max_length = 25 but the tensors have 24 classes"),
        ("gpt2_stopping", "max_length", json!(25), "max_length = 25 but the tensors have 24"),
        (
            "rotary_stopping",
            "final_layer_without_normalization",
            json!(false),
            "final_layer_without_normalization = false but the tensors have no final norm",
        ),
        (
            "rotary_length",
            "force_flash_attn",
            json!(true),
            "force_flash_attn = true but the tensors have a final norm",
        ),
        (
            "gpt2_length",
            "special_final_layer",
            json!(false),
            "special_final_layer = false but the tensors have no final norm",
        ),
        (
            "rotary_stopping",
            "_target_",
            json!("ilm.model_ilm.RotaryTransformerILMModel"),
            "_target_ = ilm.model_ilm.RotaryTransformerILMModel but the tensors have a head of 2 classes",
        ),
        (
            "rotary_ilm",
            "_target_",
            json!("RotaryTransformerILMModelWithStoppingClassification"),
            "_target_ = RotaryTransformerILMModelWithStoppingClassification but the tensors have no class head",
        ),
        (
            "rotary_ilm",
            "_target_",
            json!("GPT2ILMModel"),
            "_target_ = GPT2ILMModel but the tensors have 'embed_tokens.weight'",
        ),
        (
            "rotary_length_classes7",
            "_target_",
            json!("RotaryTransformerILMModelWithStoppingClassification"),
            "num_classes = 2 but the tensors have 7 classes",
        ),
    ] {
        assert_eq!(contradiction(name, key, value), sentence);
    }
}

#[test]
fn arguments_that_the_tensors_cannot_confirm_are_taken() {
    let golden = Golden::open("rotary_stopping");
    let file = open_bytes(&to_bytes(&golden.state)).unwrap();
    let mut config = golden.config(true);
    (config.max_length, config.dropout, config.padding_idx) = (Some(99), Some(0.0), Some(3));
    config.dim_feedforward = None;
    let model = file.architecture(&config).unwrap();
    assert_eq!((model.max_length, model.dropout, model.padding_idx, model.dim_feedforward), (99, 0.0, 3, 64));
}

#[test]
fn config_json_keeps_what_it_does_not_know_and_must_be_json() {
    let dir = Golden::open("rotary_stopping").folder(false);
    let path = dir.path().join(CONFIG_FILE);
    fs::write(&path, r#"{"nhead": 4, "keep_type_embeddings": false, "tags": ["a"], "num_classes": null}"#)
        .unwrap();
    let file = WeightsFile::open(dir.path()).unwrap();
    let config = file.config().unwrap().unwrap();
    assert_eq!((config.nhead, config.num_classes), (Some(4), None));
    assert_eq!(config.other["tags"], json!(["a"]));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<ReferenceConfig>(&text).unwrap(), config);
    for text in ["", "[]", r#"{"nhead": -4}"#, r#"{"activation": "swish"}"#, r#"{"dropout": "much"}"#] {
        fs::write(&path, text).unwrap();
        assert!(matches!(refused(file.config()), WeightsError::BadConfig { .. }), "{text}");
    }
    fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(refused(file.config()).to_string().contains("it has 1048577 bytes"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused(file.config()).to_string().contains("not a regular file"));
    let config = ReferenceConfig { target: Some("mine.Model".into()), ..Default::default() };
    assert!(matches!(refused(file.architecture(&config)), WeightsError::UnknownClass { .. }));
}

/// What is said about a golden model if its state dict is changed.
#[track_caller]
fn unknown(name: &str, change: impl FnOnce(&mut StateDict)) -> String {
    let mut state = Golden::open(name).state;
    change(&mut state);
    let error = refused(open_bytes(&to_bytes(&state)).unwrap().describe());
    assert!(matches!(error, WeightsError::UnknownModel { .. }), "{error}");
    error.to_string()
}

#[test]
fn tensors_of_no_known_model_are_refused() {
    let matrix = |rows: usize, width: usize| Raw::f32(&[rows, width], &vec![0.0; rows * width]);
    let set = |key: &'static str, raw: Raw| move |state: &mut StateDict| drop(state.insert(key.into(), raw));
    for (sentence, part) in [
        (unknown("rotary_ilm", StateDict::clear), "neither 'embed_tokens.weight' nor"),
        (
            unknown("rotary_ilm", |state| drop(state.remove("embed_tokens.weight"))),
            "'encoder.0.attn_qkv.weight', ",
        ),
        (unknown("rotary_ilm", set("transformer.wte.weight", matrix(2, 2))), "has both"),
        (unknown("rotary_ilm", set("output_layer.linear.weight", matrix(22, 32))), "different vocabularies"),
        (unknown("rotary_ilm", set("output_layer.linear.weight", matrix(23, 31))), "is 31 wide and"),
        (unknown("rotary_ilm", set("embed_tokens.weight", Raw::f32(&[3], &[0.0; 3]))), "is no matrix"),
        (unknown("rotary_ilm", set("embed_tokens.weight", matrix(0, 3))), "is no matrix"),
        (
            unknown("rotary_ilm", set("encoder.3.norm1.bias", matrix(1, 1))),
            "beyond 'encoder.2' but not that one",
        ),
        (
            unknown("gpt2_stopping", |state| drop(state.remove("transformer.wpe.weight"))),
            "no 'transformer.wpe.weight'",
        ),
        (
            unknown("gpt2_stopping", |state| state.retain(|key, _| !key.contains(".h."))),
            "no layers 'transformer.h.0'",
        ),
    ] {
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[test]
fn frequencies_of_another_base_are_noticed() {
    let mut state = Golden::open("rotary_stopping").state;
    state.insert("encoder.1.rotary_emb.inv_freq".into(), Raw::f32(&[4], &[1.0, 0.1, 0.01, 0.002]));
    let file = open_bytes(&to_bytes(&state)).unwrap();
    let error = refused(file.check_frequencies(8)).to_string();
    assert!(error.contains("0.002 as element 3 of 'encoder.1.rotary_emb.inv_freq'"), "{error}");
    let short = |values: &[f32]| {
        let state = [("encoder.0.rotary_emb.inv_freq".into(), Raw::f32(&[values.len()], values))].into();
        refused(open_bytes(&to_bytes(&state)).unwrap().check_frequencies(8)).to_string()
    };
    assert!(short(&[1.0, 0.1, 0.01]).contains("NaN as element 3"));
    assert!(short(&[1.0, 0.1, 0.01, 0.001, 0.0001]).contains("0.0001 as element 4"));
    assert!(short(&[f32::NAN]).contains("NaN as element 0"));
}
