//! Pre-norm transformer blocks on packed rows, each with its own backward pass.
//!
//! A block begins behind its first norm and ends before the addition of its feed-forward part, because that addition is done
//! together with the next norm.

use tch::{Kind, Tensor};

use crate::arena::Arena;
use crate::config::{Activation, ModelShape};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, operand_kind};
use crate::ops::activation::{Activated, Curve, activate, activate_backward};
use crate::ops::attention::{Attention, Tape};
use crate::ops::norm::{Branch, Normed, add_norm, add_norm_backward};
use crate::parts::Parts;
use crate::plan::Plan;
use crate::turns::Turns;

/// What every block of one micro-batch shares.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    pub(super) plan: &'a Plan,
    /// None if positions are in the embedding.
    pub(super) turns: Option<Turns>,
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
    curve: Curve,
    heads: i64,
    index: u64,
}

/// What a block's backward needs from its forward.
#[derive(Debug)]
pub(super) struct BlockTape {
    normed1: Normed,
    attention: Tape,
    context: Tensor,
    normed2: Normed,
    activated: Activated,
}

impl BlockTape {
    /// The block's input, [N, d].
    pub(super) fn input(&self) -> &Tensor {
        &self.normed1.sum
    }
}

/// Where a block ends: the stream, and what is still to be added to it.
#[derive(Debug)]
pub(super) struct Open<'a> {
    pub(super) stream: Tensor,
    pub(super) branch: Option<Branch<'a>>,
}

impl Block {
    /// All blocks of a model.
    pub(super) fn stack(arena: &Arena, shape: &ModelShape) -> Result<Vec<Self>> {
        (0..shape.config.num_layers).map(|index| Self::new(arena, shape, index)).collect()
    }

    fn new(arena: &Arena, shape: &ModelShape, index: i64) -> Result<Self> {
        let parts = Parts::of(shape.config.class);
        let (eps, kind) = (shape.config.layer_norm_eps, operand_kind(shape.precision));
        let norm = |part| LayerNorm::new(arena, &parts.in_block(index, part), parts.biased, eps, kind);
        let linear = |part, biased| Linear::new(arena, &parts.in_block(index, part), biased);
        let curve = match (shape.config.activation, parts.gelu) {
            (Activation::Relu, _) => Curve::Relu,
            (Activation::Gelu, Curve::ErfGelu) => Curve::ErfGelu,
            (Activation::Gelu, _) => Curve::TanhGelu,
        };
        Ok(Self {
            norm1: norm(parts.norm1)?,
            qkv: linear(parts.qkv, false)?,
            project: linear(parts.project, false)?,
            norm2: norm(parts.norm2)?,
            widen: linear(parts.widen, parts.biased)?,
            narrow: linear(parts.narrow, parts.biased)?,
            curve,
            heads: shape.config.nhead,
            index: index as u64,
        })
    }

    /// Closes what is open and goes through the block.
    pub(super) fn forward<'a>(&'a self, open: Open, flow: &Flow) -> Result<(Open<'a>, BlockTape)> {
        let normed1 = add_norm(&open.stream, open.branch, &self.norm1.weights())?;
        let kind = self.qkv.kind();
        let tokens = normed1.sum.size()[0];
        let qkv = self.qkv.inner_product(&normed1.normed)?.f_view([tokens, 3, self.heads, -1])?;
        let (context, attention) = self.attention(flow, kind).forward(qkv)?;
        let values = self.project.inner_product(&context)?;
        let branch = Branch { values, bias: None, dropout: self.dropout(flow, 1) };

        let normed2 = add_norm(&normed1.sum, Some(branch), &self.norm2.weights())?;
        let widened = self.widen.inner_product(&normed2.normed)?;
        let activated = activate(&widened, self.widen.bias(), self.curve, kind)?;
        let values = self.narrow.inner_product(&activated.out)?;
        let branch = Branch { values, bias: self.narrow.bias(), dropout: self.dropout(flow, 2) };
        let open = Open { stream: normed2.sum.shallow_clone(), branch: Some(branch) };
        Ok((open, BlockTape { normed1, attention, context, normed2, activated }))
    }

    /// Given the gradients of the stream and of the branch at the block's end, makes the former that at the block's begin and
    /// adds the parameters'. With a block before this one, gives the gradient of its branch.
    pub(super) fn backward(
        &self,
        tape: BlockTape,
        stream: &mut Tensor,
        branch: &Tensor,
        before: Option<&Self>,
        flow: &Flow,
    ) -> Result<Option<Tensor>> {
        let widened = self.narrow.product_backward(&tape.activated.out, branch)?;
        let widened = activate_backward(&widened, &tape.activated, self.widen.bias_grad(), self.curve)?;
        let normed = self.widen.product_backward(&tape.normed2.normed, &widened)?;
        let end = Some((self.dropout(flow, 1), None));
        let branch = add_norm_backward(stream, &normed, &tape.normed2, &self.norm2.weights(), end)?;

        let branch = branch.expect("the gradient of a branch was asked for");
        let context = self.project.product_backward(&tape.context, &branch)?;
        let attention = self.attention(flow, self.qkv.kind());
        let qkv = attention.backward(tape.attention, &context, self.heads)?;
        let normed = self.qkv.product_backward(&tape.normed1.normed, &qkv)?;
        let end = before.map(|before| before.end(flow));
        add_norm_backward(stream, &normed, &tape.normed1, &self.norm1.weights(), end)
    }

    /// Dropout and gradient of the bias of the branch that is open at the block's end.
    pub(super) fn end(&self, flow: &Flow) -> (Dropout, Option<&Tensor>) {
        (self.dropout(flow, 2), self.narrow.bias_grad())
    }

    /// Type of the block's products.
    pub(super) fn kind(&self) -> Kind {
        self.narrow.kind()
    }

    fn attention<'a>(&self, flow: &'a Flow, kind: Kind) -> Attention<'a> {
        Attention { plan: flow.plan, turns: flow.turns.as_ref(), dropout: self.dropout(flow, 0), kind }
    }

    fn dropout(&self, flow: &Flow, place: u64) -> Dropout {
        flow.dropout.site(self.index).site(place)
    }
}
