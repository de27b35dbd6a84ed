//! Tokens inserted per second into a batch of 16 rows by a 256/4/4 model with the vocabulary of LM1B. Arguments: numbers of
//! threads (default: 2), precisions (both), and what to measure (all but `plain`, which is slow).
//!
//! Rows start from CLS and BOS. In the batch "lm1b" they end at lengths like those of that data set, in the batch "long" each
//! gets 100 tokens. The plain implementation computes padded logits of the whole batch "lm1b" at every step. Positions are
//! scored by the log of the sum over tokens, tokens drawn by top-p 0.5, as the experiment does; "joint" draws both at once.

use std::time::Instant;

use ilm_model::sample::{sample_top_k, sample_top_p};
use ilm_model::{
    AttentionMask, DenseBatch, Model, ModelConfig, ModelShape, Precision, Predictor, PredictorConfig, Prompt,
    Recompute, SamplingMethod, SpecialIds,
};

const ROWS: usize = 16;
const VOCABULARY: i64 = 30_522;
const SPECIAL: SpecialIds = SpecialIds { cls: 101, bos: 104, pad: 0, mask: 103 };
const SUPPRESSED: [i64; 5] = [0, 101, 103, 104, 105];
const LONG: usize = 102;
const REPEATS: usize = 3;

type Error = Box<dyn std::error::Error>;

/// Final lengths like those of LM1B: median 28, from 9 to 73.
fn lengths() -> Vec<usize> {
    (0..ROWS).map(|row| (28.0 * (0.55 * (row as f64 - 7.5) / 4.3).exp()) as usize + 2).collect()
}

fn model(precision: Precision) -> Result<Model, Error> {
    let config = ModelConfig { d_model: 256, num_layers: 4, nhead: 4, ..ModelConfig::default() };
    let shape = ModelShape {
        config,
        num_embeddings: VOCABULARY,
        padding_idx: 0,
        max_length: 128,
        precision,
        recompute: Recompute::None,
    };
    Ok(Model::new(shape, 1)?)
}

/// The experiment's way to draw.
fn experiment() -> PredictorConfig {
    PredictorConfig {
        max_steps: 126,
        stopping_threshold: Some(1.0),
        sampling_method: SamplingMethod::SampleTopP,
        p: 0.5,
        second_sampling_method: Some(SamplingMethod::SampleTopK),
        second_top: 1,
        ..PredictorConfig::default()
    }
}

fn joint() -> PredictorConfig {
    PredictorConfig { max_steps: 126, stopping_threshold: Some(1.0), ..PredictorConfig::default() }
}

fn packed(model: &Model, config: PredictorConfig, lengths: &[usize]) -> Result<usize, Error> {
    let predictor = Predictor::new(config, SPECIAL, &SUPPRESSED, model.shape())?;
    let prompts: Vec<Prompt> = (0u64..)
        .zip(lengths)
        .map(|(id, &length)| Prompt { max_length: Some(length), ..Prompt::unconditional(id, SPECIAL) })
        .collect();
    let predictions = predictor.predict(model, &prompts, 1)?;
    Ok(predictions.iter().map(|row| row.insertions.len()).sum())
}

/// Every row is padded to the widest and computed to the end, whether it is finished or not.
fn padded(model: &Model) -> Result<usize, Error> {
    let lengths = lengths();
    let mut rows: Vec<Vec<i64>> = vec![vec![SPECIAL.cls, SPECIAL.bos]; ROWS];
    let mut inserted = 0;
    while rows.iter().zip(&lengths).any(|(row, &length)| row.len() < length) {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let pad =
            |row: &Vec<i64>| row.iter().copied().chain(std::iter::repeat(SPECIAL.pad)).take(width).collect();
        let tokens: Vec<i64> = rows.iter().flat_map(|row| -> Vec<i64> { pad(row) }).collect();
        let sees: Vec<bool> = rows.iter().flat_map(|row| (0..width).map(|place| place < row.len())).collect();
        let mask = AttentionMask::Keys(&sees);
        let batch = DenseBatch { rows: ROWS, width, tokens: &tokens, positions: None, mask, cls: None };
        let mut logits = model.dense(&batch)?.token_logits;
        let _ = logits.f_index_fill_(2, &tch::Tensor::from_slice(&SUPPRESSED), f64::NEG_INFINITY)?;
        let positions = logits.f_logsumexp(2, false)?;
        for (number, (row, &length)) in rows.iter_mut().zip(&lengths).enumerate() {
            if row.len() >= length {
                continue;
            }
            let scores = floats(&positions.f_get(number as i64)?)?;
            let gap = sample_top_k(1, &scores[1..row.len()], || 0.5).ok_or("no open gap")? + 1;
            let scores = floats(&logits.f_get(number as i64)?.f_get(gap as i64)?)?;
            let mut noise = (1..).map(|draw| f64::from((draw * 7919 + inserted as u32 * 31) % 9973) / 9973.0);
            let token = sample_top_p(0.5, &scores, || noise.next().unwrap_or(0.5)).ok_or("no token")?;
            row.insert(gap + 1, token as i64);
            inserted += 1;
        }
    }
    Ok(inserted)
}

fn floats(tensor: &tch::Tensor) -> Result<Vec<f32>, Error> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Median tokens per second.
fn rate(mut run: impl FnMut() -> Result<usize, Error>) -> Result<f64, Error> {
    run()?;
    let mut rates = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        let inserted = run()?;
        rates.push(inserted as f64 / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[REPEATS / 2])
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let pick = |all: &[&'static str], default: &[&'static str]| -> Vec<&'static str> {
        let given: Vec<_> =
            all.iter().copied().filter(|name| arguments.iter().any(|word| word == name)).collect();
        if given.is_empty() { default.to_vec() } else { given }
    };
    let precisions = pick(&["fp32", "bf16"], &["fp32", "bf16"]);
    let measured = pick(&["lm1b", "long", "joint", "plain"], &["lm1b", "long", "joint"]);
    let mut threads: Vec<i32> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if threads.is_empty() {
        threads.push(2);
    }
    for threads in threads {
        tch::set_num_threads(threads);
        for &name in &precisions {
            let model = model(if name == "fp32" { Precision::Fp32 } else { Precision::Bf16 })?;
            for &what in &measured {
                let rate = match what {
                    "lm1b" => rate(|| packed(&model, experiment(), &lengths()))?,
                    "long" => rate(|| packed(&model, experiment(), &[LONG; ROWS]))?,
                    "joint" => rate(|| packed(&model, joint(), &lengths()))?,
                    _ => rate(|| padded(&model))?,
                };
                println!("{threads} threads, {name}, {what}: {rate:.1} tokens/s");
            }
        }
    }
    Ok(())
}
