//! Pre-norm transformer blocks on packed rows, each with its own backward pass.

use tch::Tensor;

use super::rotary::Turns;
use crate::arena::Arena;
use crate::attention::{self, AttentionTape};
use crate::config::{Activation, ModelShape};
use crate::dropout::{Dropout, Mask};
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Taped};
use crate::parts::Parts;
use crate::plan::Bucket;

/// What every block of one micro-batch shares.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    /// None if positions are in the embedding.
    pub(super) turns: Option<Turns>,
    pub(super) buckets: &'a [Bucket],
    pub(super) dropout: Dropout,
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    project: Linear,
    norm2: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: Activation,
    gelu: &'static str,
    heads: i64,
    index: u64,
}

/// What a block's backward needs from its forward.
#[derive(Debug)]
pub(super) struct BlockTape {
    norm1: Taped,
    normed1: Tensor,
    attention: AttentionTape,
    context: Tensor,
    mask1: Mask,
    norm2: Taped,
    normed2: Tensor,
    /// Before the activation for GELU, after it for ReLU (whose gradient needs only the sign).
    widened: Tensor,
    activated: Tensor,
    mask2: Mask,
}

impl Block {
    /// All blocks of a model.
    pub(super) fn stack(arena: &Arena, shape: &ModelShape) -> Result<Vec<Self>> {
        (0..shape.config.num_layers).map(|index| Self::new(arena, shape, index)).collect()
    }

    fn new(arena: &Arena, shape: &ModelShape, index: i64) -> Result<Self> {
        let parts = Parts::of(shape.config.class);
        let (eps, precision) = (shape.config.layer_norm_eps, shape.precision);
        let norm = |part| LayerNorm::new(arena, &parts.in_block(index, part), parts.biased, eps);
        let linear = |part, biased| Linear::new(arena, &parts.in_block(index, part), biased, precision);
        Ok(Self {
            norm1: norm(parts.norm1)?,
            qkv: linear(parts.qkv, false)?,
            project: linear(parts.project, false)?,
            norm2: norm(parts.norm2)?,
            widen: linear(parts.widen, parts.biased)?,
            narrow: linear(parts.narrow, parts.biased)?,
            activation: shape.config.activation,
            gelu: parts.gelu,
            heads: shape.config.nhead,
            index: index as u64,
        })
    }

    /// [N, d] -> [N, d].
    pub(super) fn forward(&self, x: &Tensor, flow: &Flow) -> Result<(Tensor, BlockTape)> {
        let dropout = flow.dropout.site(self.index);
        let (normed1, norm1) = self.norm1.forward(x)?;
        let qkv = self.qkv.forward(&normed1)?.f_view([x.size()[0], 3, self.heads, -1])?;
        if let Some(turns) = &flow.turns {
            turns.apply_(&qkv.f_narrow(1, 0, 2)?)?;
        }
        let (context, attention) = attention::forward(&qkv, flow.buckets, dropout.site(0))?;
        let (mut middle, mask1) = dropout.site(1).apply(self.project.forward(&context)?)?;
        let middle = middle.f_add_(x)?;

        let (normed2, norm2) = self.norm2.forward(&middle)?;
        let (widened, activated) = self.activate(self.widen.forward(&normed2)?)?;
        let (mut out, mask2) = dropout.site(2).apply(self.narrow.forward(&activated)?)?;
        let out = out.f_add_(&middle)?;
        let tape = BlockTape {
            norm1,
            normed1,
            attention,
            context,
            mask1,
            norm2,
            normed2,
            widened,
            activated,
            mask2,
        };
        Ok((out, tape))
    }

    /// Adds the block's gradients and returns that of its input.
    pub(super) fn backward(&self, tape: BlockTape, grad: &Tensor, flow: &Flow) -> Result<Tensor> {
        let branch = tape.mask2.backward(grad)?;
        let widened = self.narrow.backward(&tape.activated, &branch)?;
        let widened = self.activate_backward(&tape.widened, widened)?;
        let normed = self.widen.backward(&tape.normed2, &widened)?;
        let middle = self.norm2.backward(tape.norm2, &normed)?.f_add_(grad)?;

        let branch = tape.mask1.backward(&middle)?;
        let context = self.project.backward(&tape.context, &branch)?;
        let qkv = attention::backward(tape.attention, flow.buckets, &context, self.heads)?;
        if let Some(turns) = &flow.turns {
            turns.undo_(&qkv.f_narrow(1, 0, 2)?)?;
        }
        let normed = self.qkv.backward(&tape.normed1, &qkv.f_view([grad.size()[0], -1])?)?;
        Ok(self.norm1.backward(tape.norm1, &normed)?.f_add_(&middle)?)
    }

    fn activate(&self, mut widened: Tensor) -> Result<(Tensor, Tensor)> {
        Ok(match self.activation {
            Activation::Relu => {
                let activated = widened.f_relu_()?;
                (widened, activated)
            }
            Activation::Gelu => {
                let activated = widened.f_gelu(self.gelu)?;
                (widened, activated)
            }
        })
    }

    fn activate_backward(&self, widened: &Tensor, grad: Tensor) -> Result<Tensor> {
        Ok(match self.activation {
            Activation::Relu => widened.f_threshold_backward_grad_input(&grad, &grad, 0)?,
            Activation::Gelu => widened.f_gelu_backward(&grad, self.gelu)?,
        })
    }
}
