//! AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101) on flat buffers.

use std::ops::Range;

use rayon::prelude::*;

use super::CHUNK;
use crate::config::OptimizerConfig;

/// A range of the flat buffers whose elements are all decayed or all not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Elements of the flat buffers.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
}

/// First and second moments of the gradient.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// m, running mean of the gradient.
    pub exp_avg: Vec<f32>,
    /// v, running mean of the squared gradient.
    pub exp_avg_sq: Vec<f32>,
    segments: Vec<Segment>,
}

/// What varies from step to step.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Number of this update, from 1.
    pub step: u64,
    /// Multiplies the gradient first: clipping, and division by the number of examples.
    pub grad_scale: f64,
}

/// The constants of one update in the precision of the buffers.
#[derive(Clone, Copy)]
struct Coefficients {
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    step_size: f32,
    inverse_sqrt_correction2: f32,
    eps: f32,
}

impl AdamW {
    /// Zero moments for `len` elements. Neighbouring segments of the same kind are joined.
    pub fn new(len: usize, segments: impl IntoIterator<Item = Segment>) -> Self {
        let mut joined: Vec<Segment> = Vec::new();
        for segment in segments {
            match joined.last_mut() {
                Some(last) if last.decay == segment.decay && last.range.end == segment.range.start => {
                    last.range.end = segment.range.end;
                }
                _ => joined.push(segment),
            }
        }
        Self { exp_avg: vec![0.0; len], exp_avg_sq: vec![0.0; len], segments: joined }
    }

    /// One update of `params` in place:
    /// `p -= lr wd p`, `m = b1 m + (1-b1) g`, `v = b2 v + (1-b2) g^2`, `p -= lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)`.
    pub fn step(&mut self, config: &OptimizerConfig, update: Update, params: &mut [f32], grads: &[f32]) {
        for segment in &self.segments {
            let weight_decay = if segment.decay { config.weight_decay } else { 0.0 };
            let coefficients = Coefficients::new(config, update, weight_decay);
            let range = segment.range.clone();
            params[range.clone()]
                .par_chunks_mut(CHUNK)
                .zip(grads[range.clone()].par_chunks(CHUNK))
                .zip(self.exp_avg[range.clone()].par_chunks_mut(CHUNK))
                .zip(self.exp_avg_sq[range].par_chunks_mut(CHUNK))
                .for_each(|(((p, g), m), v)| update_chunk(coefficients, p, g, m, v));
        }
    }
}

impl Coefficients {
    fn new(config: &OptimizerConfig, update: Update, weight_decay: f64) -> Self {
        let [beta1, beta2] = config.betas;
        let correction1 = 1.0 - beta1.powf(update.step as f64);
        let correction2 = 1.0 - beta2.powf(update.step as f64);
        Self {
            grad_scale: update.grad_scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            keep: (1.0 - update.lr * weight_decay) as f32,
            step_size: (update.lr / correction1) as f32,
            inverse_sqrt_correction2: (1.0 / correction2.sqrt()) as f32,
            eps: config.eps as f32,
        }
    }
}

fn update_chunk(c: Coefficients, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * c.grad_scale;
        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
        *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
        *p = *p * c.keep - c.step_size * *m / (v.sqrt() * c.inverse_sqrt_correction2 + c.eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_learning_rate_and_decays_only_where_told() {
        let config = OptimizerConfig { lr: 0.1, weight_decay: 0.5, ..OptimizerConfig::default() };
        let segments = [Segment { range: 0..2, decay: true }, Segment { range: 2..4, decay: false }];
        let mut adamw = AdamW::new(4, segments);
        let mut params = [1.0, 1.0, 1.0, 1.0];
        let update = Update { lr: 0.1, step: 1, grad_scale: 0.5 };
        adamw.step(&config, update, &mut params, &[2.0, -2.0, 2.0, -2.0]);
        // After one step m/(1-b1) = g and v/(1-b2) = g^2, so every element moves by lr against the sign of g.
        let expected = [0.95 - 0.1, 0.95 + 0.1, 0.9, 1.1];
        for (found, expected) in params.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn neighbours_of_one_kind_are_one_segment() {
        let kinds = [true, true, false, false, true];
        let segments = kinds.iter().enumerate().map(|(i, &decay)| Segment { range: i..i + 1, decay });
        let adamw = AdamW::new(5, segments);
        let ranges: Vec<_> = adamw.segments.iter().map(|segment| segment.range.clone()).collect();
        assert_eq!(ranges, [0..2, 2..4, 4..5]);
    }
}
