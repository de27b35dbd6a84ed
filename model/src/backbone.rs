//! Embedding and pre-norm transformer blocks on packed rows, each block with its own backward pass.

use tch::Tensor;

use crate::arena::Arena;
use crate::attention::{self, AttentionTape};
use crate::config::{Activation, ModelShape};
use crate::dropout::{Dropout, Mask};
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Taped};
use crate::plan::Bucket;
use crate::rotary::Turns;

/// What every block of one micro-batch shares.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) turns: Turns,
    pub(crate) buckets: &'a [Bucket],
    pub(crate) dropout: Dropout,
}

/// Token embedding.
#[derive(Debug)]
pub(crate) struct Embedding {
    weight: Tensor,
    weight_grad: Tensor,
    padding_idx: i64,
}

impl Embedding {
    pub(crate) fn new(arena: &Arena, padding_idx: i64) -> Result<Self> {
        let (weight, weight_grad) = arena.views("embed_tokens.weight")?;
        Ok(Self { weight, weight_grad, padding_idx })
    }

    /// [N] ids -> [N, d].
    pub(crate) fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.weight.f_index_select(0, tokens)?)
    }

    /// Adds the used rows' gradients; the padding row gets none.
    pub(crate) fn backward(&self, tokens: &Tensor, grad: &Tensor) -> Result<()> {
        let mut grad = grad.shallow_clone();
        let padding = tokens.f_eq(self.padding_idx)?.f_unsqueeze(1)?;
        let grad = grad.f_masked_fill_(&padding, 0.0)?;
        let _ = self.weight_grad.shallow_clone().f_index_add_(0, tokens, &grad)?;
        Ok(())
    }
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    output: Linear,
    norm2: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: Activation,
    heads: i64,
    index: u64,
}

/// What a block's backward needs from its forward.
#[derive(Debug)]
pub(crate) struct BlockTape {
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
    pub(crate) fn new(arena: &Arena, shape: &ModelShape, index: i64) -> Result<Self> {
        let name = |part: &str| format!("encoder.{index}.{part}");
        let linear = |part: &str, with_bias| Linear::new(arena, &name(part), with_bias, shape.precision);
        let eps = shape.config.layer_norm_eps;
        Ok(Self {
            norm1: LayerNorm::new(arena, &name("norm1"), eps)?,
            qkv: linear("attn_qkv", false)?,
            output: linear("o_proj", false)?,
            norm2: LayerNorm::new(arena, &name("norm2"), eps)?,
            widen: linear("mlp.0", true)?,
            narrow: linear("mlp.2", true)?,
            activation: shape.config.activation,
            heads: shape.config.nhead,
            index: index as u64,
        })
    }

    /// [N, d] -> [N, d].
    pub(crate) fn forward(&self, x: &Tensor, flow: &Flow) -> Result<(Tensor, BlockTape)> {
        let dropout = flow.dropout.site(self.index);
        let (normed1, norm1) = self.norm1.forward(x)?;
        let qkv = self.qkv.forward(&normed1)?.f_view([x.size()[0], 3, self.heads, -1])?;
        flow.turns.apply_(&qkv.f_narrow(1, 0, 2)?)?;
        let (context, attention) = attention::forward(&qkv, flow.buckets, dropout.site(0))?;
        let (mut middle, mask1) = dropout.site(1).apply(self.output.forward(&context)?)?;
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
    pub(crate) fn backward(&self, tape: BlockTape, grad: &Tensor, flow: &Flow) -> Result<Tensor> {
        let branch = tape.mask2.backward(grad)?;
        let widened = self.narrow.backward(&tape.activated, &branch)?;
        let widened = self.activate_backward(&tape.widened, widened)?;
        let normed = self.widen.backward(&tape.normed2, &widened)?;
        let middle = self.norm2.backward(tape.norm2, &normed)?.f_add_(grad)?;

        let branch = tape.mask1.backward(&middle)?;
        let context = self.output.backward(&tape.context, &branch)?;
        let qkv = attention::backward(tape.attention, flow.buckets, &context, self.heads)?;
        flow.turns.undo_(&qkv.f_narrow(1, 0, 2)?)?;
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
                let activated = widened.f_gelu("tanh")?;
                (widened, activated)
            }
        })
    }

    fn activate_backward(&self, widened: &Tensor, grad: Tensor) -> Result<Tensor> {
        Ok(match self.activation {
            Activation::Relu => widened.f_threshold_backward_grad_input(&grad, &grad, 0)?,
            Activation::Gelu => widened.f_gelu_backward(&grad, "tanh")?,
        })
    }
}
