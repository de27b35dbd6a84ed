//! State-dict keys and shapes of every class, as the reference's documentation of its models lists them.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use ilm_model::{Family, HeadKind, ModelClass, ModelConfig, ModelShape, ParamLayout, Precision, Recompute};

const V: i64 = 31;
const D: i64 = 12;
const F: i64 = 20;
const LAYERS: i64 = 3;
const MAX_LENGTH: i64 = 17;
const CLASSES: i64 = 5;

fn shape(class: ModelClass, with_norm: bool) -> ModelShape {
    let config = ModelConfig {
        class,
        num_classes: (class.head() == HeadKind::Classification).then_some(CLASSES),
        d_model: D,
        num_layers: LAYERS,
        nhead: 2,
        dim_feedforward: Some(F),
        rotary_emb_dim: (class.family() == Family::Rotary).then_some(4),
        final_layer_without_normalization: Some(!with_norm),
        ..ModelConfig::default()
    };
    ModelShape {
        config,
        num_embeddings: V,
        padding_idx: 0,
        max_length: MAX_LENGTH,
        precision: Precision::Fp32,
        recompute: Recompute::None,
    }
}

type Keys = Vec<(String, Vec<i64>)>;

fn rotary(with_norm: bool) -> Keys {
    let mut keys: Keys = vec![("embed_tokens.weight".into(), vec![V, D])];
    for i in 0..LAYERS {
        let block: [(&str, &[i64]); 10] = [
            ("norm1.weight", &[D]),
            ("norm1.bias", &[D]),
            ("attn_qkv.weight", &[3 * D, D]),
            ("o_proj.weight", &[D, D]),
            ("norm2.weight", &[D]),
            ("norm2.bias", &[D]),
            ("mlp.0.weight", &[F, D]),
            ("mlp.0.bias", &[F]),
            ("mlp.2.weight", &[D, F]),
            ("mlp.2.bias", &[D]),
        ];
        keys.extend(block.map(|(name, shape)| (format!("encoder.{i}.{name}"), shape.to_vec())));
    }
    if with_norm {
        keys.push(("output_layer.norm_final.weight".into(), vec![D]));
        keys.push(("output_layer.norm_final.bias".into(), vec![D]));
    }
    keys.push(("output_layer.linear.weight".into(), vec![V, D]));
    keys
}

fn gpt2(with_norm: bool) -> Keys {
    let mut keys: Keys = vec![
        ("transformer.wte.weight".into(), vec![V, D]),
        ("transformer.wpe.weight".into(), vec![MAX_LENGTH, D]),
    ];
    for i in 0..LAYERS {
        let block: [(&str, &[i64]); 6] = [
            ("ln_1.weight", &[D]),
            ("attn.c_attn.weight", &[3 * D, D]),
            ("attn.c_proj.weight", &[D, D]),
            ("ln_2.weight", &[D]),
            ("mlp.c_fc.weight", &[F, D]),
            ("mlp.c_proj.weight", &[D, F]),
        ];
        keys.extend(block.map(|(name, shape)| (format!("transformer.h.{i}.{name}"), shape.to_vec())));
    }
    if with_norm {
        keys.push(("transformer.ln_f.weight".into(), vec![D]));
    }
    keys.push(("lm_head.weight".into(), vec![V, D]));
    keys
}

fn head(classes: i64) -> Keys {
    let keys: [(&str, Vec<i64>); 7] = [
        ("norm_final.weight", vec![D]),
        ("norm_final.bias", vec![D]),
        ("mlp.0.weight", vec![2 * D, D]),
        ("mlp.0.bias", vec![2 * D]),
        ("mlp.2.weight", vec![D, 2 * D]),
        ("mlp.2.bias", vec![D]),
        ("linear.weight", vec![classes, D]),
    ];
    keys.map(|(name, shape)| (format!("length_output_layer.{name}"), shape)).to_vec()
}

#[test]
fn every_class_has_the_keys_of_its_family_and_head() {
    for class in ModelClass::ALL {
        for with_norm in [false, true] {
            let mut expected = match class.family() {
                Family::Rotary => rotary(with_norm),
                Family::Gpt2 => gpt2(with_norm),
            };
            match class.head() {
                HeadKind::None => {}
                HeadKind::Classification => expected.extend(head(CLASSES)),
                HeadKind::Stopping => expected.extend(head(2)),
                HeadKind::Length => expected.extend(head(MAX_LENGTH)),
            }
            let layout = ParamLayout::new(&shape(class, with_norm)).unwrap();
            let mut found: Keys =
                layout.entries().iter().map(|entry| (entry.name.clone(), entry.shape.clone())).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{}", class.key());
        }
    }
}

#[test]
fn the_final_norm_is_where_each_constructor_has_it_by_default() {
    for class in ModelClass::ALL {
        let mut shape = shape(class, false);
        shape.config.final_layer_without_normalization = None;
        let layout = ParamLayout::new(&shape).unwrap();
        let has_norm = ["output_layer.norm_final.weight", "transformer.ln_f.weight"]
            .iter()
            .any(|name| layout.entry(name).is_ok());
        let expected = matches!(class, ModelClass::Gpt2Classification | ModelClass::Gpt2Stopping);
        assert_eq!(has_norm, expected, "{}", class.key());
    }
}
