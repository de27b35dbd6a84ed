//! From tokens to hidden states and back: what both families share, and the one trait behind which they differ.

mod block;
mod embedding;
mod gpt2;
mod rotary;

use tch::Tensor;

pub(crate) use block::Block;
use block::{BlockTape, Flow};
use embedding::Embedding;
pub(crate) use gpt2::STD as GPT2_STD;
use rotary::Turns;

use crate::arena::Arena;
use crate::config::{Family, ModelShape};
use crate::dropout::{Dropout, Mask};
use crate::error::Result;
use crate::layers::{LayerNorm, Taped};
use crate::layout::Init;
use crate::plan::Plan;

/// A stack of blocks over embedded tokens. Loss and predictor see nothing else of a family.
pub(crate) trait Backbone: std::fmt::Debug + Send {
    /// The blocks, from the first.
    fn blocks(&self) -> &[Block];

    /// The plan's tokens at their positions, [N, d].
    fn embed(&self, plan: &Plan, dropout: Dropout) -> Result<(Tensor, Mask)>;

    /// Adds the embeddings' gradients; the values of `grad` may be changed.
    fn embed_backward(&self, plan: &Plan, mask: &Mask, grad: Tensor) -> Result<()>;

    /// How queries and keys are turned by their positions; none if they are not.
    fn turns(&self, plan: &Plan) -> Result<Option<Turns>>;

    /// The norm behind the last block, where the family has one that all heads see.
    fn last_norm(&self) -> Option<&LayerNorm>;
}

/// Hidden states [N, d] of the plan's tokens and what backward needs of them.
pub(crate) struct Encoded<'a> {
    pub(crate) hidden: Tensor,
    flow: Flow<'a>,
    embedded: Mask,
    tapes: Vec<BlockTape>,
    last_norm: Option<Taped>,
}

/// The family's backbone on an arena laid out for `shape`.
pub(crate) fn build(arena: &Arena, shape: &ModelShape) -> Result<Box<dyn Backbone>> {
    Ok(match shape.config.class.family() {
        Family::Rotary => Box::new(rotary::RotaryBackbone::new(arena, shape)?),
        Family::Gpt2 => Box::new(gpt2::Gpt2Backbone::new(arena, shape)?),
    })
}

/// Name, rows and start of the embedding matrices.
pub(crate) fn embeddings(shape: &ModelShape) -> Vec<(&'static str, i64, Init)> {
    match shape.config.class.family() {
        Family::Rotary => rotary::embeddings(shape),
        Family::Gpt2 => gpt2::embeddings(shape),
    }
}

impl dyn Backbone {
    /// Forward with all that backward needs.
    pub(crate) fn encode<'a>(&self, plan: &'a Plan, dropout: Dropout) -> Result<Encoded<'a>> {
        let flow = Flow { turns: self.turns(plan)?, buckets: &plan.buckets, dropout };
        let (mut hidden, embedded) = self.embed(plan, dropout)?;
        let mut tapes = Vec::with_capacity(self.blocks().len());
        for block in self.blocks() {
            let (out, tape) = block.forward(&hidden, &flow)?;
            hidden = out;
            tapes.push(tape);
        }
        let mut last_norm = None;
        if let Some(norm) = self.last_norm() {
            let (normed, tape) = norm.forward(&hidden)?;
            (hidden, last_norm) = (normed, Some(tape));
        }
        Ok(Encoded { hidden, flow, embedded, tapes, last_norm })
    }

    /// Adds all gradients, given that of the hidden states; `on_ready` is called before the last block, behind every block, and
    /// at the end.
    pub(crate) fn backward(
        &self,
        plan: &Plan,
        encoded: Encoded,
        mut grad: Tensor,
        on_ready: &mut dyn FnMut(),
    ) -> Result<()> {
        if let (Some(norm), Some(tape)) = (self.last_norm(), encoded.last_norm) {
            grad = norm.backward(tape, &grad)?;
        }
        on_ready();
        for (block, tape) in self.blocks().iter().zip(encoded.tapes).rev() {
            grad = block.backward(tape, &grad, &encoded.flow)?;
            on_ready();
        }
        self.embed_backward(plan, &encoded.embedded, grad)?;
        on_ready();
        Ok(())
    }

    /// Hidden states [N, d] without dropout.
    pub(crate) fn hidden(&self, plan: &Plan) -> Result<Tensor> {
        let flow = Flow { turns: self.turns(plan)?, buckets: &plan.buckets, dropout: Dropout::OFF };
        let mut hidden = self.embed(plan, Dropout::OFF)?.0;
        for block in self.blocks() {
            hidden = block.forward(&hidden, &flow)?.0;
        }
        Ok(match self.last_norm() {
            Some(norm) => norm.forward(&hidden)?.0,
            None => hidden,
        })
    }
}
