//! Our settings of a model and the reference's constructor arguments, each made of the other.

use checkpoints::weights::{Activation as TheirActivation, Architecture, ReferenceClass};
use ilm_model::{Activation, Family, HeadKind, ModelClass, ModelShape};

/// Our class of the reference's, and the other way round; both lists name every class.
fn our_class(class: ReferenceClass) -> ModelClass {
    let same = |ours: &&ModelClass| ours.reference_name() == class.name();
    *ModelClass::ALL.iter().find(same).expect("a test compares the lists")
}

/// The reference's class.
pub fn reference_class(class: ModelClass) -> ReferenceClass {
    let same = |theirs: &&ReferenceClass| theirs.name() == class.reference_name();
    *ReferenceClass::ALL.iter().find(same).expect("a test compares the lists")
}

/// What the reference calls a model of this shape; `mask` is the tokenizer's, which its constructors want to know.
pub fn architecture(shape: &ModelShape, mask: u32) -> Architecture {
    let config = &shape.config;
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    Architecture {
        class: reference_class(config.class),
        num_embeddings: size(shape.num_embeddings),
        d_model: size(config.d_model),
        num_layers: size(config.num_layers),
        nhead: size(config.nhead),
        dim_feedforward: size(config.feed_forward()),
        max_length: size(shape.max_length),
        rotary_emb_dim: (config.class.family() == Family::Rotary).then(|| size(config.rotated())),
        activation: match config.activation {
            Activation::Relu => TheirActivation::Relu,
            Activation::Gelu => TheirActivation::Gelu,
        },
        layer_norm_eps: config.layer_norm_eps,
        dropout: config.dropout,
        padding_idx: size(shape.padding_idx),
        mask_idx: u64::from(mask),
        final_norm: config.has_final_norm(),
        num_classes: shape.num_classes().map(size),
    }
}

/// The settings, `key=value`, that make a model of this architecture whatever stands in the files; an empty value clears a key.
pub fn settings(model: &Architecture) -> Vec<String> {
    let class = our_class(model.class);
    let classes =
        model.num_classes.filter(|_| matches!(class.head(), HeadKind::Classification | HeadKind::Length));
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let activation = match model.activation {
        TheirActivation::Relu => "relu",
        TheirActivation::Gelu => "gelu",
    };
    [
        ("class", class.key().to_owned()),
        ("num_classes", number(classes)),
        ("d_model", model.d_model.to_string()),
        ("num_layers", model.num_layers.to_string()),
        ("nhead", model.nhead.to_string()),
        ("dim_feedforward", model.dim_feedforward.to_string()),
        ("dropout", model.dropout.to_string()),
        ("activation", activation.to_owned()),
        ("layer_norm_eps", model.layer_norm_eps.to_string()),
        ("rotary_emb_dim", number(model.rotary_emb_dim)),
        ("max_length", model.max_length.to_string()),
        ("final_layer_without_normalization", (!model.final_norm).to_string()),
    ]
    .map(|(key, value)| format!("model.{key}={value}"))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ilm_model::{ModelConfig, Precision, Recompute};

    #[test]
    fn both_lists_name_the_same_classes() {
        assert_eq!(ModelClass::ALL.len(), ReferenceClass::ALL.len());
        for class in ModelClass::ALL {
            assert_eq!(our_class(reference_class(class)), class);
        }
    }

    #[test]
    fn settings_of_an_architecture_make_it_again() {
        for class in ModelClass::ALL {
            let rotary = class.family() == Family::Rotary;
            let config = ModelConfig {
                class,
                num_classes: (class.head() == HeadKind::Classification).then_some(5),
                d_model: 24,
                num_layers: 3,
                nhead: 2,
                dim_feedforward: Some(40),
                activation: Activation::Gelu,
                rotary_emb_dim: rotary.then_some(6),
                max_length: Some(61),
                final_layer_without_normalization: Some(false),
                ..ModelConfig::default()
            };
            let max_length = 61;
            let shape = ModelShape {
                config,
                num_embeddings: 27,
                padding_idx: 0,
                max_length,
                precision: Precision::Fp32,
                recompute: Recompute::None,
            };
            let model = architecture(&shape, 2);
            // star_easy_mini_ilm names a rotary model, whose settings must not shine through; it has 27 tokens
            let mut overrides = settings(&model);
            overrides.push("loss.length_loss=none".into());
            let resolved = crate::config::load("star_easy_mini_ilm", &overrides, None).unwrap();
            crate::config::validate::settings(&resolved.experiment).unwrap();
            let again = ModelShape { config: resolved.experiment.model, ..shape };
            assert_eq!(architecture(&again, 2), model, "{}", class.key());
        }
    }
}
