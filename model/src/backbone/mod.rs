//! From tokens to hidden states and back: what both families share, and the one trait behind which they differ.

mod block;
mod embedding;
mod gpt2;
mod rotary;

use tch::Tensor;

pub(crate) use block::Block;
use block::{BlockTape, Flow, Open};
use embedding::Embedding;
pub(crate) use gpt2::STD as GPT2_STD;

use crate::arena::Arena;
use crate::config::{Family, ModelShape, Recompute};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::LayerNorm;
use crate::layout::Init;
use crate::ops::norm::{Normed, add, add_backward, add_norm, add_norm_backward};
use crate::plan::Plan;
use crate::turns::Turns;

/// A stack of blocks over embedded tokens. Loss and predictor see nothing else of a family.
pub(crate) trait Backbone: std::fmt::Debug + Send {
    /// The blocks, from the first.
    fn blocks(&self) -> &[Block];

    /// The plan's tokens at their positions, [N, d].
    fn embed(&self, plan: &Plan, dropout: Dropout) -> Result<Tensor>;

    /// Adds the embeddings' gradients; the values of `grad` may be changed.
    fn embed_backward(&self, plan: &Plan, dropout: Dropout, grad: Tensor) -> Result<()>;

    /// How queries and keys are turned by their positions; none if they are not.
    fn turns(&self, plan: &Plan) -> Result<Option<Turns>>;

    /// The norm behind the last block, where the family has one that all heads see.
    fn last_norm(&self) -> Option<&LayerNorm>;
}

/// Hidden states [N, d] of the plan's tokens and what backward needs of them.
pub(crate) struct Encoded<'a> {
    pub(crate) hidden: Tensor,
    flow: Flow<'a>,
    tapes: Vec<Tape>,
    last_norm: Option<Normed>,
}

/// What is kept of a block's forward pass: all, or its input, from which the rest is computed again.
enum Tape {
    All(BlockTape),
    Input(Tensor),
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
    /// Forward with all that backward needs, or with what it can be computed from; `on_need` is called before the embedding, every
    /// block, and what follows them.
    pub(crate) fn encode<'a>(
        &self,
        plan: &'a Plan,
        dropout: Dropout,
        recompute: Recompute,
        on_need: &mut dyn FnMut(),
    ) -> Result<Encoded<'a>> {
        let flow = self.flow(plan, dropout)?;
        let mut tapes = Vec::with_capacity(self.blocks().len());
        let open = self.run(&flow, on_need, |tape| {
            tapes.push(match recompute {
                Recompute::None => Tape::All(tape),
                Recompute::Blocks => Tape::Input(tape.input().shallow_clone()),
            });
        })?;
        on_need();
        let (hidden, last_norm) = self.close(open)?;
        Ok(Encoded { hidden, flow, tapes, last_norm })
    }

    /// Adds all gradients, given that of the hidden states; `on_ready` is called before the last block, behind every block, and
    /// at the end.
    pub(crate) fn backward(
        &self,
        encoded: Encoded,
        hidden: Tensor,
        on_ready: &mut dyn FnMut(),
    ) -> Result<()> {
        let Encoded { flow, tapes, last_norm, .. } = encoded;
        let (mut stream, mut branch) = self.open(&flow, last_norm, hidden)?;
        on_ready();
        for (index, tape) in tapes.into_iter().enumerate().rev() {
            let block = &self.blocks()[index];
            let tape = match tape {
                Tape::All(tape) => tape,
                Tape::Input(stream) => block.forward(Open { stream, branch: None }, &flow)?.1,
            };
            let before = index.checked_sub(1).map(|before| &self.blocks()[before]);
            if let Some(end) = branch.take() {
                branch = block.backward(tape, &mut stream, &end, before, &flow)?;
            }
            on_ready();
        }
        self.embed_backward(flow.plan, flow.dropout, stream)?;
        on_ready();
        Ok(())
    }

    /// Hidden states [N, d] without dropout.
    pub(crate) fn hidden(&self, plan: &Plan) -> Result<Tensor> {
        let flow = self.flow(plan, Dropout::OFF)?;
        let open = self.run(&flow, &mut || (), drop)?;
        Ok(self.close(open)?.0)
    }

    fn flow<'a>(&self, plan: &'a Plan, dropout: Dropout) -> Result<Flow<'a>> {
        Ok(Flow { plan, turns: self.turns(plan)?, dropout })
    }

    /// Goes through all blocks.
    fn run(
        &self,
        flow: &Flow,
        on_need: &mut dyn FnMut(),
        mut keep: impl FnMut(BlockTape),
    ) -> Result<Open<'_>> {
        on_need();
        let mut open = Open { stream: self.embed(flow.plan, flow.dropout)?, branch: None };
        for block in self.blocks() {
            on_need();
            let (next, tape) = block.forward(open, flow)?;
            open = next;
            keep(tape);
        }
        Ok(open)
    }

    /// The hidden states that the last block leaves.
    fn close(&self, open: Open) -> Result<(Tensor, Option<Normed>)> {
        if let Some(norm) = self.last_norm() {
            let normed = add_norm(&open.stream, open.branch, &norm.weights())?;
            return Ok((normed.normed.shallow_clone(), Some(normed)));
        }
        Ok(match open.branch {
            Some(branch) => (add(&open.stream, branch)?, None),
            None => (open.stream, None),
        })
    }

    /// The gradients of stream and branch at the end of the last block, given that of the hidden states.
    fn open(
        &self,
        flow: &Flow,
        last_norm: Option<Normed>,
        hidden: Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let last = self.blocks().last();
        if let (Some(norm), Some(saved)) = (self.last_norm(), last_norm) {
            let mut stream = hidden.f_zeros_like()?;
            let mut branch = None;
            if let Some(end) = last.map(|block| block.end(flow)) {
                // in f32, the norm's own type; the block's products want theirs
                let grad = add_norm_backward(&mut stream, &hidden, &saved, &norm.weights(), Some(end))?;
                branch = last.zip(grad).map(|(last, grad)| grad.f_to_kind(last.kind())).transpose()?;
            }
            return Ok((stream, branch));
        }
        let branch = match last {
            Some(last) => {
                let (dropout, bias) = last.end(flow);
                Some(add_backward(&hidden, dropout, bias, last.kind())?)
            }
            None => None,
        };
        Ok((hidden, branch))
    }
}
