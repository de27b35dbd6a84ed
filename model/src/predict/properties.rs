//! The chooser against a plain one that has all scores before it, for any sizes and settings.

use proptest::prelude::*;
use tch::{Kind, Tensor};

use super::choose::Chooser;
use super::scores::Scores;
use crate::config::{PredictorConfig, SamplingMethod};
use crate::random::{Purpose, keyed_rng, uniform};
use crate::sample::{sample, sample_nucleus, sample_top_k, sample_top_p};

/// Features of a state; with few small values in it, products are exact in any order.
const WIDTH: i64 = 8;

#[derive(Debug, Clone)]
struct Case {
    widths: Vec<usize>,
    vocabulary: usize,
    suppressed: Vec<i64>,
    kind: Kind,
    /// What the states are multiplied by: scores lie close to each other or far apart.
    scale: f64,
    config: PredictorConfig,
    seed: u64,
}

/// Values of a matrix [rows, WIDTH]: quarters from -1 to 1.
fn matrix(rows: usize, seed: u64, kind: Kind) -> Tensor {
    let mut rng = keyed_rng(seed, Purpose::Init, rows as u64, 0);
    let values: Vec<f32> =
        (0..rows * WIDTH as usize).map(|_| ((uniform(&mut rng) * 9.0) as i32 - 4) as f32 / 4.0).collect();
    Tensor::from_slice(&values).view([rows as i64, WIDTH]).to_kind(kind)
}

/// The settings' method for the token, or for the gap.
fn draw(
    method: SamplingMethod,
    top: i64,
    p: f64,
    scores: &[f32],
    uniform: impl FnMut() -> f64,
) -> Option<usize> {
    match method {
        SamplingMethod::Sample => sample(scores, uniform),
        SamplingMethod::SampleTopK => sample_top_k(top as usize, scores, uniform),
        SamplingMethod::SampleTopP => sample_top_p(p, scores, uniform),
        SamplingMethod::SampleNucleus => sample_nucleus(p, scores, uniform),
    }
}

/// As [`Chooser::choose`], from all scores [gaps, V] and the gaps' own.
fn plain(case: &Case, all: &[f32], sums: &[f32]) -> Vec<Option<(usize, i64)>> {
    let PredictorConfig { sampling_method, top, p, second_sampling_method, second_top, second_p, .. } =
        case.config;
    let mut start = 0;
    (0..)
        .zip(&case.widths)
        .map(|(id, &width)| {
            let mut rng = keyed_rng(case.seed, Purpose::Predict, id, 3);
            let mut uniform = || uniform(&mut rng);
            let gaps = start..start + width;
            start += width;
            let v = case.vocabulary;
            let Some(second) = second_sampling_method else {
                let place = draw(sampling_method, top, p, &all[gaps.start * v..gaps.end * v], uniform)?;
                return Some((place / v, (place % v) as i64));
            };
            let gap = draw(second, second_top, second_p, &sums[gaps.clone()], &mut uniform)?;
            let scores = &all[(gaps.start + gap) * v..][..v];
            Some((gap, draw(sampling_method, top, p, scores, uniform)? as i64))
        })
        .collect()
}

fn method() -> impl Strategy<Value = SamplingMethod> {
    use SamplingMethod::{Sample, SampleNucleus, SampleTopK, SampleTopP};
    prop::sample::select(vec![Sample, SampleTopK, SampleTopP, SampleNucleus])
}

fn cases() -> impl Strategy<Value = Case> {
    let config = (method(), prop::option::of(method()), any::<bool>(), 1i64..60, 1i64..9, 0.01f64..=1.0)
        .prop_map(|(sampling_method, second_sampling_method, use_high_precision, top, second_top, p)| {
            PredictorConfig {
                sampling_method,
                second_sampling_method,
                use_high_precision,
                top,
                second_top,
                p,
                second_p: 1.01 - p,
                ..PredictorConfig::default()
            }
        });
    let vocabulary = prop::sample::select(vec![1usize, 19, 511, 512, 513, 1300]);
    let widths = prop::collection::vec(prop_oneof![4 => 1usize..30, 1 => 30usize..400], 1..9);
    let kind = prop::sample::select(vec![Kind::Float, Kind::BFloat16]);
    let suppressed = prop::collection::vec(0i64..1300, 0..6);
    let scale = prop::sample::select(vec![1.0, 32.0]);
    (widths, vocabulary, suppressed, kind, scale, config, any::<u64>()).prop_map(
        |(widths, vocabulary, suppressed, kind, scale, config, seed)| {
            let suppressed = suppressed.into_iter().filter(|&token| token < vocabulary as i64).collect();
            Case { widths, vocabulary, suppressed, kind, scale, config, seed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn choices_are_those_of_a_plain_implementation(case in cases()) {
        let gaps: usize = case.widths.iter().sum();
        let (states, tokens) = (matrix(gaps, case.seed, case.kind), matrix(case.vocabulary, case.seed ^ 1, case.kind));
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let states = states * case.scale;
        let mut all = double(&states).mm(&double(&tokens).tr());
        if !case.suppressed.is_empty() {
            let _ = all.index_fill_(1, &Tensor::from_slice(&case.suppressed), f64::NEG_INFINITY);
        }
        let expected_sums = Vec::<f64>::try_from(all.logsumexp(1, false)).unwrap();
        let all = Vec::<f32>::try_from(all.to_kind(Kind::Float).view([-1])).unwrap();

        let scores = Scores { states, matrix: &tokens, suppressed: &case.suppressed };
        for precise in [false, true] {
            for (sum, expected) in scores.log_sums(precise).unwrap().iter().zip(&expected_sums) {
                let bound = 1e-6 * (1.0 + expected.abs());
                prop_assert!(f64::from(*sum) == *expected || (f64::from(*sum) - expected).abs() < bound);
            }
        }
        let sums = scores.log_sums(case.config.use_high_precision).unwrap();
        let ids: Vec<u64> = (0..case.widths.len() as u64).collect();
        let chooser = Chooser { config: &case.config, seed: case.seed, step: 3 };
        let choices = chooser.choose(&scores, &case.widths, &ids).unwrap();
        prop_assert_eq!(choices, plain(&case, &all, &sums));
    }
}
