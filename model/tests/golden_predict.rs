//! The predictors of every class against the reference: ids, places, masks, texts, history.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Golden, SPECIAL, decode, load_model, shape_of};
use ilm_model::{Prediction, Predictor, PredictorConfig, Prompt, SamplingMethod};
use serde_json::{Value, json};

fn case_of(name: &str) -> Value {
    let text = std::fs::read_to_string(test_support::golden_dir().join("predict.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[name].take()
}

fn config_of(case: &Value) -> PredictorConfig {
    let kwargs = &case["predictor_kwargs"];
    let flag = |key: &str| kwargs[key].as_bool().unwrap_or(false);
    let joint = case["sampling"].as_str().unwrap().contains("joint");
    PredictorConfig {
        max_steps: kwargs["max_steps"].as_u64().unwrap() as usize,
        max_length: kwargs["max_length"].as_u64().map(|length| length as usize),
        stopping_threshold: kwargs["stopping_threshold"].as_f64(),
        stopping_temperature: kwargs["stopping_temperature"].as_f64().unwrap_or(1.0),
        sampling_method: SamplingMethod::SampleTopK,
        top: 1,
        second_sampling_method: (!joint).then_some(SamplingMethod::SampleTopK),
        second_top: 1,
        force_predict_first_step: flag("force_predict_first_step"),
        use_high_precision: flag("use_high_precision"),
        return_history: true,
        ..PredictorConfig::default()
    }
}

/// The real tokens of the reference's padded rows.
fn prompts_of(golden: &Golden) -> Vec<Prompt> {
    let ids = golden.get("batch.input_ids");
    let (rows, width) = (ids.shape[0], ids.shape[1]);
    let mask = golden.ints("batch.attention_mask");
    let row_of = |values: &[i64], row: usize| -> Vec<i64> {
        (row * width..(row + 1) * width).filter(|&at| mask[at] != 0).map(|at| values[at]).collect()
    };
    let constraint = golden.find("batch.constraint");
    let oracle = golden.find("batch.oracle_length");
    (0..rows)
        .map(|row| Prompt {
            id: row as u64,
            tokens: row_of(&ids.ints, row),
            token_types: row_of(golden.ints("batch.token_type_ids"), row),
            closed: constraint
                .map(|closed| row_of(&closed.ints, row).iter().map(|&value| value != 0).collect()),
            max_length: oracle.map(|lengths| lengths.ints[row] as usize),
        })
        .collect()
}

/// How the reference pads: in front of prompts, and behind the text up to a width that grows by one with every step.
struct Padding {
    left: Vec<usize>,
    width: usize,
}

impl Padding {
    fn of(golden: &Golden) -> Self {
        let mask = golden.get("batch.attention_mask");
        let width = mask.shape[1];
        let left = mask.ints.chunks(width).map(|row| row.iter().position(|&real| real != 0).unwrap());
        Self { left: left.collect(), width }
    }

    fn row(&self, row: usize, tokens: &[i64], steps: usize) -> Vec<i64> {
        let mut padded = vec![SPECIAL.pad; self.left[row]];
        padded.extend(tokens);
        padded.resize(self.width + steps, SPECIAL.pad);
        padded
    }
}

fn case(name: &str) {
    let golden = Golden::open(&format!("predict_{name}.safetensors"));
    let case = case_of(name);
    let shape = shape_of(case["model_class"].as_str().unwrap(), &case["model_kwargs"]);
    let model = load_model(shape.clone(), &golden);
    let suppressed: Vec<i64> =
        case["tokens_suppressed"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let mut config = config_of(&case);
    // some cases allow more than there are positions for, and stop long before
    config.max_length = config.max_length.map(|length| length.min(shape.positions() as usize));
    let predictor = Predictor::new(config, SPECIAL, &suppressed, &shape).unwrap();
    let (prompts, padding) = (prompts_of(&golden), Padding::of(&golden));
    let predictions = predictor.predict(&model, &prompts, 0).unwrap();

    let steps = predictions.iter().map(|row| row.insertions.len()).max().unwrap();
    for (row, prediction) in predictions.iter().enumerate() {
        check_trace(&case["steps"], row, prediction);
        check_history(&case, row, prediction, &padding);
        if name.contains("QUIRK") {
            check_stopped_at_max_length(&case, row, prediction, &padding);
            let (ids, out) = (padding.row(row, &prediction.tokens, steps), golden.get("out.ids"));
            assert_ne!(ids, out.ints[row * out.shape[1]..][..ids.len()]);
        } else {
            let ids = padding.row(row, &prediction.tokens, steps);
            let out = golden.get("out.ids");
            assert_eq!(ids, out.ints[row * out.shape[1]..][..out.shape[1]], "{name} row {row}");
            let text = json!(decode(&ids));
            // quirk 20: the reference's text keeps special tokens
            assert_eq!([&case["text"][row], &case["text_with_spl_tokens"][row]], [&text, &text]);
        }
        check_real_places(&golden, row, &prompts[row], prediction);
    }
    golden.assert_all_used(&[
        "batch.n_drops",
        "batch.target_ids",
        "batch.target_attention_mask",
        "batch.cls_position",
    ]);
}

/// Quirk 8: the reference's masks and positions keep the places of cleaned tokens; without those they count 0, 1, ..
fn check_real_places(golden: &Golden, row: usize, prompt: &Prompt, prediction: &Prediction) {
    let (mask, positions) = (golden.get("out.attention_mask"), golden.ints("out.positions"));
    let width = mask.shape[1];
    let real = (row * width..(row + 1) * width).filter(|&at| mask.ints[at] != 0);
    let places: Vec<i64> = real.map(|at| positions[at]).collect();
    let len = prompt.tokens.len() + prediction.insertions.len();
    assert_eq!(places, (0..len as i64).collect::<Vec<_>>());
}

/// Quirk 13: at `max_length` the reference goes on appending tokens; the last text of its history is what should have come.
fn check_stopped_at_max_length(case: &Value, row: usize, prediction: &Prediction, padding: &Padding) {
    let history = case["history"][row].as_array().unwrap();
    let ids = padding.row(row, &prediction.tokens, history.len() - 1);
    assert_eq!(history[history.len() - 1][0], json!(decode(&ids)));
    let max_length = case["predictor_kwargs"]["max_length"].as_u64().unwrap() as usize;
    assert_eq!(prediction.tokens.len(), max_length);
}

fn check_history(case: &Value, row: usize, prediction: &Prediction, padding: &Padding) {
    let entries = prediction
        .history
        .iter()
        .enumerate()
        .map(|(steps, entry)| json!([decode(&padding.row(row, &entry.tokens, steps)), 1.0, entry.step]));
    let history = Value::Array(entries.collect());
    assert_eq!(case["history"][row], history);
    assert_eq!(case["to_dict_history"][row], history);
}

/// Every step's token and place; a row that stopped has no more steps.
fn check_trace(steps: &Value, row: usize, prediction: &Prediction) {
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
fn golden_predict_plain_infill() {
    case("plain_infill");
}

#[test]
fn golden_predict_plain_joint() {
    case("plain_joint");
}

#[test]
fn golden_predict_plain_max_length_quirk_13() {
    case("plain_max_length_QUIRK");
}

#[test]
fn golden_predict_length_infill() {
    case("length_infill");
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

#[test]
fn golden_predict_lists_no_case_without_a_test() {
    let text = std::fs::read_to_string(test_support::golden_dir().join("predict.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let source = include_str!("golden_predict.rs");
    for name in cases.as_object().unwrap().keys() {
        assert!(source.contains(&format!("case(\"{name}\")")), "{name}");
    }
}

/// Section 7.4: where BOS stands. Quirk 7: the reference's types on the "left" side are those of the "right" side.
#[test]
fn golden_prompts_on_either_side_of_bos() {
    let golden = Golden::open("collators.safetensors");
    let text = std::fs::read_to_string(test_support::golden_dir().join("collators.json")).unwrap();
    let texts: Value = serde_json::from_str(&text).unwrap();
    let prompts: Vec<Vec<i64>> =
        serde_json::from_value(texts["cases"]["prefix"]["prompt_ids"].clone()).unwrap();
    for side in ["left", "right"] {
        for (cls, bos) in [("1", "4"), ("1", "None"), ("None", "4"), ("None", "None")] {
            let get = |what: &str| golden.get(&format!("prefix.{side}.cls_{cls}.bos_{bos}.{what}"));
            let (ids, mask) = (get("input_ids"), get("attention_mask"));
            let width = ids.shape[1];
            for (row, prompt) in prompts.iter().enumerate() {
                let ours = if side == "left" {
                    Prompt::continuation(0, prompt, SPECIAL)
                } else {
                    Prompt::seq2seq(0, prompt, SPECIAL)
                };
                // ours always have both
                let given =
                    |id: &i64| !(*id == SPECIAL.cls && cls == "None" || *id == SPECIAL.bos && bos == "None");
                let expected: Vec<i64> = ours.tokens.iter().copied().filter(given).collect();
                let places = row * width..(row + 1) * width;
                let real = places.filter(|&at| mask.ints[at] != 0);
                assert_eq!(real.clone().map(|at| ids.ints[at]).collect::<Vec<_>>(), expected);
                if (side, cls, bos) == ("right", "1", "4") {
                    let types = &get("token_type_ids").ints;
                    assert_eq!(real.map(|at| types[at]).collect::<Vec<_>>(), ours.token_types);
                    assert_eq!(get("cls_position").ints[row], (width - expected.len()) as i64);
                }
            }
        }
    }
}
