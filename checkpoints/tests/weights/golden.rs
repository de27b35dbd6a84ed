//! Every class of the reference opens, is described as it was constructed, and fills an arena bit for bit.

use std::fs;

use checkpoints::weights::{
    Activation, Architecture, Family, ReferenceClass, ReferenceConfig, WEIGHTS_FILE, WeightsFile,
};

use super::common::{Golden, bits};

#[test]
fn all_classes_are_described_as_they_were_constructed() {
    for name in Golden::names() {
        let golden = Golden::open(&name);
        for named in [true, false] {
            let dir = golden.folder(named);
            let file = WeightsFile::open(dir.path()).unwrap();
            assert_eq!(file.path(), dir.path().join(WEIGHTS_FILE));
            assert!(file.dropped().is_empty());
            let model = file.architecture(&file.config().unwrap().unwrap()).unwrap();
            assert_eq!(model, expected(&golden, model.class), "{name}");
            assert_eq!(model.class.family(), golden.class.family());
            if named {
                assert_eq!(model.class, golden.class);
            }
            if let Some(dim) = model.rotary_emb_dim {
                file.check_frequencies(dim).unwrap();
                assert!(file.check_frequencies(dim + 2).is_err());
            }
            assert!(file.check_frequencies(6).is_err() == model.rotary_emb_dim.is_some());
        }
    }
}

/// The architecture that the arguments say, with the reference's defaults.
fn expected(golden: &Golden, class: ReferenceClass) -> Architecture {
    let rotary = golden.class.family() == Family::Rotary;
    let number = |key: &str| golden.kwargs[key].as_u64();
    let final_norm = match golden.class {
        ReferenceClass::RotaryLength | ReferenceClass::Gpt2Classification | ReferenceClass::Gpt2Stopping => {
            true
        }
        _ => golden.kwargs["final_layer_without_normalization"] == false,
    };
    let num_classes = match golden.class {
        ReferenceClass::RotaryStopping | ReferenceClass::Gpt2Stopping => Some(2),
        ReferenceClass::RotaryLength | ReferenceClass::Gpt2Length => number("num_classes").or(Some(24)),
        _ => number("num_classes"),
    };
    let activation = match golden.kwargs["activation"].as_str() {
        Some("relu") => Activation::Relu,
        Some("gelu") => Activation::Gelu,
        _ if rotary => Activation::Relu,
        _ => Activation::Gelu,
    };
    Architecture {
        class,
        num_embeddings: 23,
        d_model: 32,
        num_layers: 2,
        nhead: 4,
        dim_feedforward: number("dim_feedforward").unwrap_or(128),
        max_length: 24,
        rotary_emb_dim: number("rotary_emb_dim"),
        activation,
        layer_norm_eps: golden.kwargs["layer_norm_eps"].as_f64().unwrap_or(1e-5),
        dropout: 0.1,
        padding_idx: 0,
        mask_idx: 2,
        final_norm,
        num_classes,
    }
}

#[test]
fn the_table_of_parameters_is_the_state_dict() {
    for name in Golden::names() {
        let golden = Golden::open(&name);
        let dir = golden.folder(true);
        let parameters = WeightsFile::open(dir.path()).unwrap().describe().unwrap().parameters();
        let (layout, _) = golden.arena();
        let stored = layout.tensors.into_iter().map(|entry| (entry.name, entry.shape)).collect();
        assert_eq!(parameters, stored, "{name}");
    }
}

#[test]
fn every_value_arrives_where_the_layout_wants_it_and_gaps_stay() {
    for name in Golden::names() {
        let golden = Golden::open(&name);
        let dir = golden.folder(true);
        let file = WeightsFile::open(dir.path()).unwrap();
        let (layout, wanted) = golden.arena();
        let mut buffer = vec![f32::MAX; wanted.len()];
        file.read_into(&layout.tensors, &mut buffer).unwrap();
        assert_eq!(bits(&buffer), bits(&wanted), "{name}");
        for (name, raw) in &golden.state {
            assert_eq!(bits(&file.read(name).unwrap()), bits(&raw.values()));
        }
    }
}

#[test]
fn without_arguments_only_the_heads_of_attention_are_unknown() {
    let dir = Golden::open("rotary_length").folder(true);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let file = WeightsFile::open(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert_eq!(file.config().unwrap(), None);
    let error = file.architecture(&ReferenceConfig::default()).unwrap_err().to_string();
    assert!(error.starts_with("nhead of "), "{error}");
    let config = ReferenceConfig { nhead: Some(4), ..Default::default() };
    let model = file.architecture(&config).unwrap();
    assert_eq!((model.num_classes, model.rotary_emb_dim, model.final_norm), (Some(24), Some(8), true));
    assert_eq!(model.max_length, 1024, "the reference's default");
}
