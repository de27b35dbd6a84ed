//! What gives the parameters of a checkpoint their meaning, beside names and shapes: some settings of the model and the
//! tokenizer. Checkpoints of versions that did not record these are taken to fit.

use std::collections::BTreeMap;

use checkpoints::Checkpoint;
use checkpoints::weights::{Activation, Architecture};
use data_pipeline::Tokenizer;
use ilm_model::ModelShape;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{self, Experiment};
use crate::reference;
use crate::run_dir::RunDir;

const ACTIVATION: &str = "model.activation";
const LAYER_NORM_EPS: &str = "model.layer_norm_eps";
const NHEAD: &str = "model.nhead";
const ROTARY_EMB_DIM: &str = "model.rotary_emb_dim";
const TOKENIZER: &str = "data.tokenizer";

/// Weights fit a model by names and shapes, and are those of another network.
#[derive(Debug, thiserror::Error)]
#[error(
    "{weights} is of a model with {key} = {saved}, not {now}, with which its parameters are another network: set \
     {key}={saved}, or train new parameters"
)]
pub struct OtherNetwork {
    weights: String,
    key: String,
    saved: String,
    now: String,
}

/// A checkpoint was trained with a tokenizer of as many tokens, which are other ones.
#[derive(Debug, thiserror::Error)]
#[error(
    "checkpoint {checkpoint} was trained with another tokenizer than {now}, though both have as many tokens: set \
     data.tokenizer and data.special_tokens to what the run was trained with ({before})"
)]
pub struct OtherTokenizer {
    checkpoint: String,
    now: String,
    before: String,
}

/// The settings that change what the same parameters compute, by key and in whole numbers, as checkpoints record them.
/// Those that change names or shapes need not be among them.
pub fn network_settings(model: &Architecture) -> BTreeMap<String, u64> {
    let activation = match model.activation {
        Activation::Relu => 0,
        Activation::Gelu => 1,
    };
    let settings = [
        (ACTIVATION, Some(activation)),
        (LAYER_NORM_EPS, Some(model.layer_norm_eps.to_bits())),
        (NHEAD, Some(model.nhead)),
        (ROTARY_EMB_DIM, model.rotary_emb_dim),
    ];
    settings.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// What a person writes for a recorded value.
fn in_words(key: &str, value: u64) -> String {
    match (key, value) {
        (ACTIVATION, 0) => "relu".to_owned(),
        (ACTIVATION, 1) => "gelu".to_owned(),
        (LAYER_NORM_EPS, bits) => f64::from_bits(bits).to_string(),
        (_, number) => number.to_string(),
    }
}

/// Whether `weights`, of which `recorded` is known, are of the network that a model of this shape is.
///
/// # Errors
/// The first setting that differs.
pub fn check_network(
    weights: String,
    recorded: &BTreeMap<String, u64>,
    shape: &ModelShape,
) -> Result<(), OtherNetwork> {
    for (key, now) in of_shape(shape) {
        if let Some(&saved) = recorded.get(&key).filter(|saved| **saved != now) {
            let [saved, now] = [saved, now].map(|value| in_words(&key, value));
            return Err(OtherNetwork { weights, key, saved, now });
        }
    }
    Ok(())
}

/// What a checkpoint of a model of this shape, trained with the tokenizer of this fingerprint, records.
pub(super) fn counters(shape: &ModelShape, tokenizer: &str) -> impl Iterator<Item = (String, u64)> + use<> {
    of_shape(shape).into_iter().chain([(TOKENIZER.to_owned(), hash(tokenizer))])
}

fn of_shape(shape: &ModelShape) -> BTreeMap<String, u64> {
    // No model uses the mask token.
    network_settings(&reference::architecture(shape, 0))
}

fn hash(fingerprint: &str) -> u64 {
    xxh3_64(fingerprint.as_bytes())
}

/// Whether a checkpoint was trained with this tokenizer.
pub fn has_tokenizer(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> bool {
    let saved = checkpoint.state().counters.get(TOKENIZER);
    saved.is_none_or(|&saved| saved == hash(&tokenizer.fingerprint()))
}

/// Whether a checkpoint of a run was trained with the tokenizer that these settings name.
///
/// # Errors
/// [`OtherTokenizer`].
pub fn check_tokenizer(
    checkpoint: &Checkpoint,
    run_dir: &RunDir,
    config: &Experiment,
    tokenizer: &Tokenizer,
) -> Result<(), OtherTokenizer> {
    if has_tokenizer(checkpoint, tokenizer) {
        return Ok(());
    }
    let before = match config::load_run(&run_dir.config(), &[]) {
        Ok(run) => format!("{} names {}", run_dir.config().display(), tokenizer_of(&run.experiment)),
        Err(error) => error.to_string(),
    };
    Err(OtherTokenizer {
        checkpoint: checkpoint.dir().display().to_string(),
        now: tokenizer_of(config),
        before,
    })
}

/// The file; star graphs need none.
fn tokenizer_of(config: &Experiment) -> String {
    let file = config.data.tokenizer.as_ref().map(|path| path.display().to_string());
    file.unwrap_or_else(|| "that of star graphs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ilm_model::{Activation as OurActivation, ModelClass, ModelConfig, Precision, Recompute};

    fn shape(config: ModelConfig) -> ModelShape {
        ModelShape {
            config,
            num_embeddings: 27,
            padding_idx: 0,
            max_length: 42,
            precision: Precision::Fp32,
            recompute: Recompute::None,
        }
    }

    fn rotary() -> ModelConfig {
        ModelConfig { d_model: 64, nhead: 2, rotary_emb_dim: Some(32), ..ModelConfig::default() }
    }

    fn gelu() -> ModelConfig {
        ModelConfig { activation: OurActivation::Gelu, ..rotary() }
    }

    /// The sentence about weights of the first model and a model like the second.
    fn difference(saved: ModelConfig, now: ModelConfig) -> Option<String> {
        let recorded: BTreeMap<_, _> = counters(&shape(saved), "tokens").collect();
        check_network("W".into(), &recorded, &shape(now)).err().map(|error| error.to_string())
    }

    #[test]
    fn what_makes_another_network_of_the_parameters_is_named_with_both_values() {
        let cases = [
            (ModelConfig { nhead: 1, ..rotary() }, "model.nhead = 2, not 1,"),
            (gelu(), "model.activation = relu, not gelu,"),
            (ModelConfig { layer_norm_eps: 0.5, ..rotary() }, "model.layer_norm_eps = 0.00001, not 0.5,"),
            (ModelConfig { rotary_emb_dim: Some(16), ..rotary() }, "model.rotary_emb_dim = 32, not 16,"),
        ];
        for (other, expected) in cases {
            let sentence = difference(rotary(), other.clone()).unwrap();
            assert!(sentence.starts_with(&format!("W is of a model with {expected}")), "{sentence}");
            assert_eq!(difference(other.clone(), other), None);
        }
        let sentence = difference(gelu(), rotary()).unwrap();
        assert!(sentence.contains("set model.activation=gelu"), "{sentence}");
    }

    #[test]
    fn what_leaves_the_network_as_it_is_may_change() {
        let others = [
            ModelConfig { dropout: 0.3, ..rotary() },
            ModelConfig { max_length: Some(99), identical_layers: true, ..rotary() },
            ModelConfig { class: ModelClass::RotaryIlm, ..rotary() },
        ];
        for other in others {
            assert_eq!(difference(rotary(), other), None);
        }
        // The default said in words is no other value.
        let plain = ModelConfig::default();
        assert_eq!(difference(plain.clone(), ModelConfig { rotary_emb_dim: Some(64), ..plain }), None);
    }

    #[test]
    fn what_a_checkpoint_did_not_record_is_taken_to_fit() {
        assert!(check_network("W".into(), &BTreeMap::new(), &shape(rotary())).is_ok());
        let gpt2 = ModelConfig { class: ModelClass::Gpt2Stopping, rotary_emb_dim: None, ..rotary() };
        assert!(!counters(&shape(gpt2), "tokens").any(|(key, _)| key == ROTARY_EMB_DIM));
    }

    #[test]
    fn tokenizers_are_told_apart_by_their_fingerprints() {
        let of_run = |tokenizer: &str| counters(&shape(rotary()), tokenizer);
        let recorded = |tokenizer: &str| of_run(tokenizer).find(|(key, _)| key == TOKENIZER);
        assert_eq!(recorded("one"), Some((TOKENIZER.to_owned(), hash("one"))));
        assert_ne!(recorded("one"), recorded("another"));
    }
}
