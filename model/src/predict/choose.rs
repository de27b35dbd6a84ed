//! Where the next token of a row goes, and which one it is.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::config::{PredictorConfig, SamplingMethod};
use crate::error::Result;
use crate::head::to_floats;
use crate::random::{Purpose, keyed_rng, uniform};
use crate::sample::{sample, sample_nucleus, sample_top_k, sample_top_p};

/// Draws the insertions of one step.
pub(super) struct Chooser<'a> {
    pub(super) config: &'a PredictorConfig,
    pub(super) suppressed: &'a [i64],
    pub(super) seed: u64,
    pub(super) step: u64,
}

/// Index among a row's open gaps, and the token; none if every token is suppressed.
type Choice = Option<(usize, i64)>;

impl Chooser<'_> {
    /// A choice for each row, from the logits [open gaps of all rows, V]; row `r` has `widths[r]` open gaps and the id
    /// `ids[r]`, which keys its draws.
    pub(super) fn choose(&self, mut logits: Tensor, widths: &[usize], ids: &[u64]) -> Result<Vec<Choice>> {
        if !self.suppressed.is_empty() {
            let suppressed = Tensor::f_from_slice(self.suppressed)?;
            let _ = logits.f_index_fill_(1, &suppressed, f64::NEG_INFINITY)?;
        }
        let mut rngs: Vec<ChaCha8Rng> =
            ids.iter().map(|&id| keyed_rng(self.seed, Purpose::Predict, id, self.step)).collect();
        match self.config.second_sampling_method {
            None => self.jointly(&logits, widths, &mut rngs),
            Some(second) => self.position_first(&logits, widths, &mut rngs, second),
        }
    }

    /// One draw over gaps x vocabulary.
    fn jointly(&self, logits: &Tensor, widths: &[usize], rngs: &mut [ChaCha8Rng]) -> Result<Vec<Choice>> {
        (starts(widths).zip(widths).zip(rngs))
            .map(|((start, &width), rng)| {
                let scores = logits.f_narrow(0, start as i64, width as i64)?;
                let scores = to_floats(&scores.f_reshape([-1])?)?;
                let vocabulary = scores.len() / width;
                Ok(self.token(&scores, rng).map(|flat| (flat / vocabulary, (flat % vocabulary) as i64)))
            })
            .collect()
    }

    /// A gap by the log of the sum over its tokens, then a token there.
    fn position_first(
        &self,
        logits: &Tensor,
        widths: &[usize],
        rngs: &mut [ChaCha8Rng],
        method: SamplingMethod,
    ) -> Result<Vec<Choice>> {
        let precise = self.config.use_high_precision.then(|| logits.f_to_kind(Kind::Double)).transpose()?;
        let gap_scores = to_floats(&precise.as_ref().unwrap_or(logits).f_logsumexp(1, false)?)?;
        let PredictorConfig { second_top, second_p, .. } = *self.config;
        (starts(widths).zip(widths).zip(rngs))
            .map(|((start, &width), rng)| {
                let scores = &gap_scores[start..start + width];
                let Some(gap) = draw(method, second_top, second_p, scores, rng) else { return Ok(None) };
                let scores = to_floats(&logits.f_select(0, (start + gap) as i64)?)?;
                Ok(self.token(&scores, rng).map(|token| (gap, token as i64)))
            })
            .collect()
    }

    fn token(&self, scores: &[f32], rng: &mut ChaCha8Rng) -> Option<usize> {
        let PredictorConfig { sampling_method, top, p, .. } = *self.config;
        draw(sampling_method, top, p, scores, rng)
    }
}

/// Where each row's gaps begin.
fn starts(widths: &[usize]) -> impl Iterator<Item = usize> {
    widths.iter().scan(0, |next, width| {
        let start = *next;
        *next += width;
        Some(start)
    })
}

fn draw(method: SamplingMethod, top: i64, p: f64, scores: &[f32], rng: &mut ChaCha8Rng) -> Option<usize> {
    let uniform = || uniform(rng);
    match method {
        SamplingMethod::Sample => sample(scores, uniform),
        SamplingMethod::SampleTopK => sample_top_k(top as usize, scores, uniform),
        SamplingMethod::SampleTopP => sample_top_p(p, scores, uniform),
        SamplingMethod::SampleNucleus => sample_nucleus(p, scores, uniform),
    }
}
