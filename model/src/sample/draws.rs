//! Draws of every method from one stream: the choices of the functions in [`super`], with less noise made for them.

use rand_chacha::ChaCha8Rng;

use super::noise::Noise;
use super::{best, nucleus, top_k, top_p};
use crate::config::SamplingMethod;

/// Scores that compete at a time; a part without a chance costs a look at its largest score only.
const PART: usize = 512;

/// A method with its parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Method {
    /// From the softmax.
    Plain,
    /// From the softmax over the k largest.
    TopK(usize),
    /// By [`super::top_p_mask`].
    TopP(f64),
    /// By [`super::nucleus_mask`].
    Nucleus(f64),
}

impl Method {
    /// The method of a configuration, which has k and p whether it needs them or not.
    pub(crate) fn new(method: SamplingMethod, k: i64, p: f64) -> Self {
        match method {
            SamplingMethod::Sample => Self::Plain,
            SamplingMethod::SampleTopK => Self::TopK(k as usize),
            SamplingMethod::SampleTopP => Self::TopP(p),
            SamplingMethod::SampleNucleus => Self::Nucleus(p),
        }
    }
}

/// One draw after the other from a stream.
pub(crate) struct Draws {
    noise: Noise,
    /// Numbers that earlier draws have taken.
    taken: u64,
}

impl Draws {
    pub(crate) fn new(rng: ChaCha8Rng) -> Self {
        Self { noise: Noise::new(rng), taken: 0 }
    }

    /// An index of `scores`; none if there is nothing to choose.
    pub(crate) fn draw(&mut self, method: Method, scores: &[f32]) -> Option<usize> {
        match method {
            Method::Plain => self.compete(scores),
            Method::TopK(1) => best(scores.iter().map(|&score| f64::from(score))),
            Method::TopK(k) => {
                let kept = top_k(k, scores);
                let ranked: Vec<f32> = kept.iter().map(|&index| scores[index]).collect();
                self.compete(&ranked).map(|place| kept[place])
            }
            Method::TopP(p) => self.compete(&only(&top_p(p, scores), scores)),
            Method::Nucleus(p) => self.compete(&only(&nucleus(p, scores), scores)),
        }
    }

    fn compete(&mut self, scores: &[f32]) -> Option<usize> {
        let (first, mut leader) = (self.taken, None);
        for (part, place) in scores.chunks(PART).zip((first..).step_by(PART)) {
            self.noise.compete(place, part, &mut leader);
        }
        self.taken += scores.len() as u64;
        leader.map(|leader| (leader.place - first) as usize)
    }
}

/// The scores with minus infinity for all that are not kept.
fn only(kept: &[usize], scores: &[f32]) -> Vec<f32> {
    let mut only = vec![f32::NEG_INFINITY; scores.len()];
    kept.iter().for_each(|&index| only[index] = scores[index]);
    only
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, keyed_rng, uniform};
    use crate::sample::{sample, sample_nucleus, sample_top_k, sample_top_p};
    use proptest::prelude::*;

    fn method() -> impl Strategy<Value = Method> {
        prop_oneof![
            Just(Method::Plain),
            prop_oneof![Just(1usize), 2usize..40, Just(5000)].prop_map(Method::TopK),
            (0.01f64..=1.0).prop_map(Method::TopP),
            (0.01f64..=1.0).prop_map(Method::Nucleus),
        ]
    }

    fn scores() -> impl Strategy<Value = Vec<f32>> {
        let score = prop_oneof![8 => -12f32..4.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(3.0)];
        prop_oneof![prop::collection::vec(score, 0..900), Just(vec![f32::NEG_INFINITY; 70])]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn draws_are_those_of_the_plain_functions(
            steps in prop::collection::vec((method(), scores()), 1..4), seed in any::<u64>(),
        ) {
            let stream = || keyed_rng(seed, Purpose::Predict, 8, 9);
            let (mut rng, mut draws) = (stream(), Draws::new(stream()));
            for (method, scores) in steps {
                let uniform = || uniform(&mut rng);
                let expected = match method {
                    Method::Plain => sample(&scores, uniform),
                    Method::TopK(k) => sample_top_k(k, &scores, uniform),
                    Method::TopP(p) => sample_top_p(p, &scores, uniform),
                    Method::Nucleus(p) => sample_nucleus(p, &scores, uniform),
                };
                prop_assert_eq!(draws.draw(method, &scores), expected, "{:?}", method);
            }
        }
    }
}
