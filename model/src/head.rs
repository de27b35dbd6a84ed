//! The head on CLS: from the hidden state there to class logits, and the loss by which it learns.

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::config::ModelShape;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear};
use crate::ops::norm::{Branch, Normed, add, add_backward};
use crate::parts::HEAD;

/// Residual two-layer perceptron and a linear map to C classes.
#[derive(Debug)]
pub(crate) struct ClassHead {
    norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    output: Linear,
}

/// What backward needs from forward.
#[derive(Debug)]
pub(crate) struct ClassTape {
    norm: Normed,
    widened: Tensor,
    dropout: Dropout,
    features: Tensor,
}

impl ClassHead {
    pub(crate) fn new(arena: &Arena, shape: &ModelShape) -> Result<Self> {
        let name = |part: &str| format!("{HEAD}.{part}");
        Ok(Self {
            norm: LayerNorm::new(arena, &name("norm_final"), true, shape.config.layer_norm_eps, Kind::Float)?,
            widen: Linear::exact(arena, &name("mlp.0"), true)?,
            narrow: Linear::exact(arena, &name("mlp.2"), true)?,
            output: Linear::exact(arena, &name("linear"), false)?,
        })
    }

    /// CLS states [B, d] -> class logits [B, C].
    pub(crate) fn forward(&self, cls: &Tensor, dropout: Dropout) -> Result<(Tensor, ClassTape)> {
        let norm = self.norm.forward(cls)?;
        let widened = self.widen.forward(&norm.normed)?.f_tanh_()?;
        let values = self.narrow.product(&widened)?;
        let features = add(cls, Branch { values, bias: self.narrow.bias(), dropout })?;
        let logits = self.output.forward(&features)?;
        Ok((logits, ClassTape { norm, widened, dropout, features }))
    }

    /// Adds the head's gradients and returns that of the CLS states.
    pub(crate) fn backward(&self, tape: ClassTape, grad: &Tensor) -> Result<Tensor> {
        let features = self.output.backward(&tape.features, grad)?;
        let branch = add_backward(&features, tape.dropout, self.narrow.bias_grad(), Kind::Float)?;
        let widened = self.narrow.product_backward(&tape.widened, &branch)?;
        let widened = Tensor::f_tanh_backward(&widened, &tape.widened)?;
        let normed = self.widen.backward(&tape.norm.normed, &widened)?;
        Ok(self.norm.backward(&tape.norm, &normed)?.f_add_(&features)?)
    }
}

/// Class logits [B, C] as host rows.
pub(crate) fn to_rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let classes = logits.size()[1] as usize;
    let flat = to_floats(&logits.f_reshape([-1])?)?;
    Ok(flat.chunks_exact(classes).map(<[f32]>::to_vec).collect())
}

/// A one-dimensional f32 tensor as a host vector.
pub(crate) fn to_floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_to_kind(Kind::Float)?.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Softmax of logits, in f64.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - top).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// Weighted cross entropy of one example's logits and its gradient by them.
pub(crate) fn class_loss(logits: &[f32], class: usize, weight: f64) -> (f64, Vec<f64>) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - top).exp()).sum();
    let log_sum = f64::from(top) + sum.ln();
    let mut grad: Vec<f64> =
        logits.iter().map(|&logit| weight * (f64::from(logit) - log_sum).exp()).collect();
    grad[class] -= weight;
    (weight * (log_sum - f64::from(logits[class])), grad)
}

/// The number of missing tokens that a length head's logits expect: `sum c softmax(logits)_c` (the reference's
/// `get_mean_delta_l`).
pub fn expected_length(logits: &[f32]) -> f64 {
    softmax(logits).iter().enumerate().map(|(class, probability)| class as f64 * probability).sum()
}
