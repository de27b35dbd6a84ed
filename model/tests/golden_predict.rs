//! The stopping predictor against the reference.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Golden, load_model, shape_of};
use ilm_model::{Predictor, PredictorConfig, Prompt, SamplingMethod};
use serde_json::Value;

const PAD: i64 = 0;

fn case(name: &str) {
    let golden = Golden::open(&format!("predict_{name}.safetensors"));
    let text = std::fs::read_to_string(test_support::golden_dir().join("predict.json")).unwrap();
    let case = serde_json::from_str::<Value>(&text).unwrap()[name].take();
    let shape = shape_of(&case["model_kwargs"]);
    let model = load_model(shape.clone(), &golden);
    let kwargs = &case["predictor_kwargs"];
    let joint = case["sampling"].as_str().unwrap().contains("joint");
    let config = PredictorConfig {
        max_steps: kwargs["max_steps"].as_u64().unwrap() as usize,
        max_length: kwargs["max_length"].as_u64().map(|length| length as usize),
        stopping_threshold: kwargs["stopping_threshold"].as_f64().unwrap(),
        stopping_temperature: kwargs["stopping_temperature"].as_f64().unwrap_or(1.0),
        sampling_method: SamplingMethod::SampleTopK,
        top: 1,
        second_sampling_method: (!joint).then_some(SamplingMethod::SampleTopK),
        second_top: 1,
        force_predict_first_step: kwargs["force_predict_first_step"].as_bool().unwrap_or(false),
        ..PredictorConfig::default()
    };
    let suppressed: Vec<i64> =
        case["tokens_suppressed"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let predictor = Predictor::new(config, &suppressed, &shape).unwrap();

    let ids = golden.get("batch.input_ids");
    let (rows, width) = (ids.shape[0], ids.shape[1]);
    let mask = golden.ints("batch.attention_mask");
    let row_of = |values: &[i64], row: usize| -> Vec<i64> {
        (row * width..(row + 1) * width).filter(|&at| mask[at] != 0).map(|at| values[at]).collect()
    };
    let constraint = golden.find("batch.constraint");
    let oracle = golden.find("batch.oracle_length");
    let prompts: Vec<Prompt> = (0..rows)
        .map(|row| Prompt {
            id: row as u64,
            tokens: row_of(&ids.ints, row),
            token_types: row_of(golden.ints("batch.token_type_ids"), row),
            closed: constraint
                .map(|closed| row_of(&closed.ints, row).iter().map(|&value| value != 0).collect()),
            max_length: oracle.map(|lengths| lengths.ints[row] as usize),
        })
        .collect();
    let predictions = predictor.predict(&model, &prompts, 0).unwrap();

    let out = golden.get("out.ids");
    for (row, (prediction, prompt)) in predictions.iter().zip(&prompts).enumerate() {
        let expected: Vec<i64> = row_of_out(&out.ints, out.shape[1], row);
        assert_eq!(prediction.tokens, expected, "{name} row {row}");
        check_trace(&case["steps"], row, prediction);
        let mut replay = prompt.tokens.clone();
        for step in &prediction.insertions {
            replay.insert(step.index, step.token);
        }
        assert_eq!(replay, prediction.tokens);
    }
}

/// Real tokens of an output row: without the pads in front of the prompt and behind the text.
fn row_of_out(ids: &[i64], width: usize, row: usize) -> Vec<i64> {
    let row = &ids[row * width..(row + 1) * width];
    let start = row.iter().position(|&id| id != PAD).unwrap();
    let end = row.iter().rposition(|&id| id != PAD).unwrap();
    row[start..=end].to_vec()
}

/// Every step's token and place; a row that stopped has no more steps.
fn check_trace(steps: &Value, row: usize, prediction: &ilm_model::Prediction) {
    let mut insertions = prediction.insertions.iter();
    for step in steps.as_array().unwrap() {
        if step["predict"][row].as_i64() == Some(0) {
            break;
        }
        // the trace may end with an evaluation that inserted nothing
        let Some(token) = step["inserted_token"][row].as_i64() else { break };
        let found = insertions.next().unwrap();
        assert_eq!(found.token, token);
        assert_eq!(found.index as i64, step["inserted_position"][row].as_i64().unwrap());
    }
    assert_eq!(insertions.next(), None);
}

#[test]
fn golden_predict_seq2seq() {
    case("stopping_seq2seq");
}

#[test]
fn golden_predict_seq2seq_joint() {
    case("stopping_seq2seq_joint");
}

#[test]
fn golden_predict_given_constraint() {
    case("stopping_given_constraint");
}

#[test]
fn golden_predict_options() {
    case("stopping_options");
}

#[test]
fn golden_predict_right_padded() {
    case("stopping_right_padded");
}

#[test]
fn golden_predict_unconditional() {
    case("stopping_unconditional");
}
