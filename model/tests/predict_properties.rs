//! What must hold for every generation: rows do not see each other, given text stays, limits hold.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{SPECIAL, small_shape, small_shape_of};
use ilm_model::{Error, Model, ModelClass, Predictor, PredictorConfig, Prompt, SamplingMethod};
use proptest::prelude::*;

fn model() -> Model {
    Model::new(small_shape(0.1), 3).unwrap()
}

fn prompts() -> Vec<Prompt> {
    (0..7u64)
        .map(|id| {
            let len = 2 + (id as usize * 3) % 5;
            let mut tokens: Vec<i64> =
                (0..len as i64).map(|place| 6 + (place * 5 + id as i64) % 12).collect();
            let mut token_types = vec![1; len];
            (tokens[0], token_types[0]) = (1, 0);
            (tokens[len - 1], token_types[len - 1]) = (4, 2);
            Prompt { id, tokens, token_types, ..Prompt::default() }
        })
        .collect()
}

#[test]
fn predictions_do_not_depend_on_how_rows_are_batched() {
    let model = model();
    for (method, second) in [
        (SamplingMethod::Sample, None),
        (SamplingMethod::SampleTopK, Some(SamplingMethod::SampleTopP)),
        (SamplingMethod::SampleTopP, Some(SamplingMethod::SampleTopK)),
    ] {
        let config = PredictorConfig {
            max_steps: 12,
            stopping_threshold: Some(1.0),
            sampling_method: method,
            top: 5,
            second_sampling_method: second,
            second_top: 2,
            ..PredictorConfig::default()
        };
        let predictor = Predictor::new(config, SPECIAL, &[0, 1, 2, 3, 4], model.shape()).unwrap();
        let prompts = prompts();
        let whole = predictor.predict(&model, &prompts, 17).unwrap();
        let split: Vec<_> =
            prompts.chunks(2).flat_map(|part| predictor.predict(&model, part, 17).unwrap()).collect();
        assert_eq!(whole, split);
        assert!(whole.iter().all(|row| row.insertions.len() == 12 && row.tokens.iter().all(|&id| id < 19)));
        assert!(whole.iter().flat_map(|row| &row.insertions).all(|step| step.token > 4 && step.index > 0));
        assert_ne!(whole, predictor.predict(&model, &prompts, 18).unwrap());
    }
}

#[test]
fn a_protected_prompt_stays_together_and_limits_hold() {
    let model = model();
    let config = PredictorConfig {
        max_steps: 40,
        max_length: Some(11),
        stopping_threshold: Some(1.0),
        protect_prompt: true,
        ..PredictorConfig::default()
    };
    let predictor = Predictor::new(config.clone(), SPECIAL, &[0, 1, 2, 3, 4], model.shape()).unwrap();
    let prompts = prompts();
    for (row, prompt) in predictor.predict(&model, &prompts, 1).unwrap().iter().zip(&prompts) {
        assert_eq!(row.tokens.len(), 11);
        assert_eq!(row.tokens[..prompt.tokens.len()], prompt.tokens);
    }
    let closed = Prompt { closed: Some(vec![true; prompts[0].tokens.len()]), ..prompts[0].clone() };
    assert!(predictor.predict(&model, &[closed], 1).unwrap()[0].insertions.is_empty());
    let all: Vec<i64> = (0..19).collect();
    let mute = Predictor::new(config.clone(), SPECIAL, &all, model.shape()).unwrap();
    assert!(mute.predict(&model, &prompts, 1).unwrap().iter().all(|row| row.insertions.is_empty()));

    let long = PredictorConfig { max_length: Some(66), ..config };
    assert!(Predictor::new(long, SPECIAL, &[], model.shape()).unwrap_err().is_config());
    let headless = Prompt { tokens: vec![5], token_types: vec![1], ..Prompt::default() };
    assert!(matches!(predictor.predict(&model, &[headless], 1), Err(Error::Prompt { .. })));
}

/// Starts with BOS and its open gap, then the pieces.
fn infilling(pieces: &[Vec<i64>]) -> Prompt {
    Prompt::infilling(7, pieces, SPECIAL)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn infilling_keeps_the_text_around_its_gaps(
        class in prop::sample::select(ModelClass::ALL.to_vec()),
        pieces in prop::collection::vec(prop::collection::vec(5i64..19, 0..5), 1..5),
        seed in any::<u64>(),
    ) {
        let model = Model::new(small_shape_of(class, 0.0), 3).unwrap();
        let config = PredictorConfig { max_steps: 9, stopping_threshold: Some(1.0), ..PredictorConfig::default() };
        let predictor = Predictor::new(config, SPECIAL, &[0, 1, 2, 3, 4], model.shape()).unwrap();
        let prompt = infilling(&pieces);
        let prediction = predictor.predict(&model, std::slice::from_ref(&prompt), seed).unwrap().remove(0);
        let expected = if pieces.len() > 1 { 9 } else { 0 };
        prop_assert_eq!(prediction.insertions.len(), expected);

        let fillings = prediction.fillings(&prompt, SPECIAL);
        let closed = prompt.closed.clone().unwrap();
        let mut text = Vec::new();
        for ((&token, filling), closed) in prompt.tokens.iter().zip(&fillings).zip(closed) {
            text.push(token);
            text.extend(filling);
            prop_assert!(filling.is_empty() || !closed);
        }
        prop_assert_eq!(text, prediction.tokens);
    }
}

#[test]
fn padding_and_masks_that_a_model_inserts_are_no_text() {
    let model = model();
    let config = PredictorConfig {
        max_steps: 30,
        stopping_threshold: Some(1.0),
        return_history: true,
        ..PredictorConfig::default()
    };
    let predictor = Predictor::new(config, SPECIAL, &[1, 3, 4], model.shape()).unwrap();
    let predictions = predictor.predict(&model, &prompts(), 5).unwrap();
    let blanks =
        |tokens: &[i64]| tokens.iter().filter(|&&id| id == SPECIAL.pad || id == SPECIAL.mask).count();
    let inserted: Vec<i64> =
        predictions.iter().flat_map(|row| &row.insertions).map(|step| step.token).collect();
    assert!(blanks(&inserted) > 0, "the case shows nothing");
    for row in &predictions {
        assert_eq!((blanks(&row.tokens), row.tokens.len()), (0, row.token_types.len()));
        assert_eq!(row.history.len(), row.insertions.len() + 1);
        assert_eq!(row.history[row.history.len() - 1].tokens, row.tokens);
    }
}
