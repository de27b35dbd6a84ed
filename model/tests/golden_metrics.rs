//! Scores of answers, means of losses and generative perplexity against the reference.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::Golden;
use ilm_model::metrics::{
    GenerativePerplexity, JudgeScore, Mean, Scored, TextScore, exact_match_with_lengths, mean_of_batch_means,
    reference_scores, score,
};
use serde_json::Value;

const PAD: i64 = 0;

/// The reference's numbers are f32.
fn assert_near(what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
        "{what}: {found} instead of {expected}"
    );
}

fn rows_of(array: &common::Array) -> impl Iterator<Item = &[i64]> {
    array.ints.chunks(array.shape[1])
}

#[test]
fn golden_metrics_beside_the_corrected_ones() {
    let golden = Golden::open("metrics.safetensors");
    let (prompts, targets) = (golden.get("input_ids"), golden.get("target_ids"));
    for (name, corrected) in [("perfect", 1.0), ("some_wrong", 0.6), ("short_QUIRK", 0.2)] {
        let ids = golden.get(&format!("{name}.ids"));
        let rows: Vec<Scored> = (rows_of(prompts).zip(rows_of(targets)).zip(rows_of(ids)))
            .map(|((prompt, target), predicted)| Scored { prompt, target, predicted })
            .collect();
        let scores = reference_scores(&rows, targets.shape[1], PAD);
        let matches: Vec<f32> = scores.iter().map(|score| f32::from(u8::from(score.exact_match))).collect();
        assert_eq!(matches, golden.floats(&format!("{name}.matches")));
        let expected = |metric: &str| f64::from(golden.floats(&format!("{name}.{metric}"))[0]);
        let exact = Mean::of(matches.into_iter().map(f64::from)).mean().unwrap();
        assert_near(name, exact, expected("exact_match"));
        let accuracy = Mean::of(scores.iter().map(|score| score.token_accuracy)).mean().unwrap();
        assert_near(name, accuracy, expected("token_accuracy"));

        // corrected: real target tokens only, and the whole target
        let end = |tokens: &[i64]| tokens.iter().rposition(|&id| id != PAD).map_or(0, |last| last + 1);
        let exact = Mean::of(rows.iter().map(|row| {
            let target = &row.target[..end(row.target)];
            let predicted = &row.predicted[..end(row.predicted)];
            f64::from(u8::from(score(Scored { prompt: row.prompt, target, predicted }).exact_match))
        }));
        assert_near(name, exact.mean().unwrap(), corrected);
    }
}

#[test]
fn golden_metrics_with_lengths() {
    let golden = Golden::open("metrics.safetensors");
    let targets = golden.get("target_ids");
    let lengths = [6, 6, 4, 6, 5].into_iter().zip([6, 6, 4, 6, 6]);
    let exact = Mean::of(rows_of(targets).zip(lengths).map(|(row, (predicted, target))| {
        f64::from(u8::from(exact_match_with_lengths(row, predicted, row, target)))
    }));
    let expected = f64::from(golden.floats("with_lengths.exact_match")[0]);
    assert_near("with lengths", exact.mean().unwrap(), expected);
}

#[test]
fn golden_metrics_of_losses() {
    let golden = Golden::open("metrics.safetensors");
    let losses: Vec<f64> =
        golden.floats("accumulated_loss.batch_loss").iter().map(|&loss| f64::from(loss)).collect();
    let (first, second) = losses.split_at(4);
    let reference = mean_of_batch_means([first, second]).unwrap();
    assert_near("accumulated loss", reference, f64::from(golden.floats("accumulated_loss.out")[0]));
    // by example, as the reference has it for this metric and we have it for all
    let mut mean = Mean::of(first.iter().copied());
    mean.merge(Mean::of(second.iter().copied()));
    assert_near("token cross entropy", mean.mean().unwrap(), f64::from(golden.floats("token_ce.out")[0]));
}

/// The toy judge: what token b costs behind token a, in nats.
fn cost(a: i64, b: i64) -> f64 {
    0.1 * ((7 * a + 3 * b) % 11) as f64 + 0.05
}

/// Every number of a JSON object but its text is in `found`, and the reverse.
fn assert_fields(what: &str, object: &Value, found: &[(&str, f64)]) {
    let object = object.as_object().unwrap();
    assert_eq!(object.keys().filter(|key| *key != "text").count(), found.len(), "{what}");
    for (field, value) in found {
        assert_near(&format!("{what}, {field}"), *value, object[*field].as_f64().unwrap());
    }
}

#[test]
fn golden_generative_perplexity() {
    let text =
        std::fs::read_to_string(test_support::golden_dir().join("generative_perplexity.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut all = GenerativePerplexity::default();
    for sample in golden["per_sample"].as_array().unwrap() {
        let text = sample["text"].as_str().unwrap();
        // the generator's tokens and the judge's are the numbers of the text
        let tokens: Vec<i64> = text.split(' ').map(|word| word.parse().unwrap()).collect();
        let likelihoods: Vec<f64> = tokens.windows(2).map(|pair| -cost(pair[0], pair[1])).collect();
        let score = TextScore::new(&tokens);
        let judged = JudgeScore::new(&tokens, &likelihoods).unwrap();
        let mut fields = vec![("length", score.length as f64), ("entropy", score.entropy)];
        if let Some(judged) = &judged {
            fields.extend([
                ("total_nll_judge", judged.total_nll),
                ("total_length_judge", judged.length as f64),
                ("nll_judge", judged.nll),
                ("perplexity_judge", judged.perplexity),
                ("entropy_judge", judged.entropy),
            ]);
        }
        assert_fields(text, sample, &fields);
        all.add(Some(&score), judged.as_ref());
    }
    let fields = [
        ("length", all.length),
        ("entropy", all.entropy),
        ("length_judge", all.judge_length),
        ("nll_judge", all.judge_nll),
        ("perplexity_judge", all.judge_perplexity),
        ("entropy_judge", all.judge_entropy),
    ];
    let mut fields: Vec<(&str, f64)> = fields.map(|(field, mean)| (field, mean.mean().unwrap())).to_vec();
    fields.push(("total_perplexity_judge", all.total_perplexity().unwrap()));
    assert_fields("all samples", &golden["aggregated"], &fields);
}
