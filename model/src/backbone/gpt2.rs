//! The GPT-2 family: a learned vector of each position is added to that of the token.

use tch::{Kind, Tensor};

use super::{Backbone, Block, Embedding};
use crate::arena::Arena;
use crate::config::ModelShape;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::LayerNorm;
use crate::layout::Init;
use crate::ops::dropout::drop;
use crate::plan::Plan;
use crate::turns::Turns;

/// Standard deviation of the initial matrices.
pub(crate) const STD: f64 = 0.02;

const TOKENS: &str = "transformer.wte";
const POSITIONS: &str = "transformer.wpe";

/// The padding row starts like any other: the reference overwrites its zeros.
pub(super) fn embeddings(shape: &ModelShape) -> Vec<(&'static str, i64, Init)> {
    let init = Init::Normal { std: STD, zero_row: None };
    vec![(TOKENS, shape.num_embeddings, init), (POSITIONS, shape.positions(), init)]
}

#[derive(Debug)]
pub(super) struct Gpt2Backbone {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    last_norm: Option<LayerNorm>,
}

impl Gpt2Backbone {
    pub(super) fn new(arena: &Arena, shape: &ModelShape) -> Result<Self> {
        Ok(Self {
            tokens: Embedding::new(arena, TOKENS, Some(shape.padding_idx))?,
            positions: Embedding::new(arena, POSITIONS, None)?,
            blocks: Block::stack(arena, shape)?,
            last_norm: LayerNorm::last(arena, shape, Kind::Float)?,
        })
    }
}

impl Backbone for Gpt2Backbone {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn embed(&self, plan: &Plan, dropout: Dropout) -> Result<Tensor> {
        let sum = self.tokens.forward(&plan.tokens)?.f_add_(&self.positions.forward(&plan.positions)?)?;
        drop(&sum, dropout.site(u64::MAX))
    }

    fn embed_backward(&self, plan: &Plan, dropout: Dropout, grad: Tensor) -> Result<()> {
        let grad = drop(&grad, dropout.site(u64::MAX))?;
        self.positions.backward(&plan.positions, grad.shallow_clone())?;
        self.tokens.backward(&plan.tokens, grad)
    }

    fn turns(&self, _: &Plan) -> Result<Option<Turns>> {
        Ok(None)
    }

    fn last_norm(&self) -> Option<&LayerNorm> {
        self.last_norm.as_ref()
    }
}
