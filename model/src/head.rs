//! The stopping head: from the hidden state at CLS, is anything missing?

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::config::{LossConfig, Precision};
use crate::dropout::{Dropout, Mask};
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Taped};

/// Residual two-layer perceptron and a linear map to the classes "complete" (0) and "tokens missing" (1).
#[derive(Debug)]
pub(crate) struct StopHead {
    norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    output: Linear,
}

/// What backward needs from forward.
#[derive(Debug)]
pub(crate) struct StopTape {
    norm: Taped,
    normed: Tensor,
    widened: Tensor,
    mask: Mask,
    features: Tensor,
}

impl StopHead {
    pub(crate) fn new(arena: &Arena, eps: f64) -> Result<Self> {
        let name = |part: &str| format!("length_output_layer.{part}");
        Ok(Self {
            norm: LayerNorm::new(arena, &name("norm_final"), eps)?,
            widen: Linear::new(arena, &name("mlp.0"), true, Precision::Fp32)?,
            narrow: Linear::new(arena, &name("mlp.2"), true, Precision::Fp32)?,
            output: Linear::new(arena, &name("linear"), false, Precision::Fp32)?,
        })
    }

    /// CLS states [B, d] -> class logits [B, 2].
    pub(crate) fn forward(&self, cls: &Tensor, dropout: Dropout) -> Result<(Tensor, StopTape)> {
        let (normed, norm) = self.norm.forward(cls)?;
        let widened = self.widen.forward(&normed)?.f_tanh_()?;
        let (mut features, mask) = dropout.apply(self.narrow.forward(&widened)?)?;
        let features = features.f_add_(cls)?;
        let logits = self.output.forward(&features)?;
        Ok((logits, StopTape { norm, normed, widened, mask, features }))
    }

    /// Adds the head's gradients and returns that of the CLS states.
    pub(crate) fn backward(&self, tape: StopTape, grad: &Tensor) -> Result<Tensor> {
        let features = self.output.backward(&tape.features, grad)?;
        let branch = tape.mask.backward(&features)?;
        let widened = self.narrow.backward(&tape.widened, &branch)?;
        let widened = Tensor::f_tanh_backward(&widened, &tape.widened)?;
        let normed = self.widen.backward(&tape.normed, &widened)?;
        Ok(self.norm.backward(tape.norm, &normed)?.f_add_(&features)?)
    }
}

/// Class logits [B, 2] as host pairs.
pub(crate) fn to_pairs(logits: &Tensor) -> Result<Vec<[f32; 2]>> {
    let flat = to_floats(&logits.f_reshape([-1])?)?;
    Ok(flat.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

/// A one-dimensional f32 tensor as a host vector.
pub(crate) fn to_floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_to_kind(Kind::Float)?.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Weighted binary cross entropy of each example and its gradient by the two logits.
pub(crate) fn stopping_loss(logits: [f32; 2], missing: bool, config: &LossConfig) -> (f64, [f64; 2]) {
    let class = usize::from(missing);
    let weight = config.length_loss_weight * config.class_weights()[class];
    let [a, b] = logits.map(f64::from);
    let top = a.max(b);
    let log_sum = top + ((a - top).exp() + (b - top).exp()).ln();
    let mut grad = [a, b].map(|logit| weight * (logit - log_sum).exp());
    grad[class] -= weight;
    (weight * (log_sum - [a, b][class]), grad)
}
