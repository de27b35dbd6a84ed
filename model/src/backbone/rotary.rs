//! The rotary family: the first R features of every query and key head are turned by an angle per position.

use tch::{Device, Kind, Tensor};

use super::{Backbone, Block, Embedding};
use crate::arena::Arena;
use crate::config::ModelShape;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::layers::LayerNorm;
use crate::layout::Init;
use crate::plan::Plan;
use crate::turns::Turns;

const TOKENS: &str = "embed_tokens";

/// The padding row starts at 0.
pub(super) fn embeddings(shape: &ModelShape) -> Vec<(&'static str, i64, Init)> {
    let init = Init::Normal { std: 1.0, zero_row: Some(shape.padding_idx) };
    vec![(TOKENS, shape.num_embeddings, init)]
}

#[derive(Debug)]
pub(super) struct RotaryBackbone {
    tokens: Embedding,
    rotary: Rotary,
    blocks: Vec<Block>,
}

impl RotaryBackbone {
    pub(super) fn new(arena: &Arena, shape: &ModelShape) -> Result<Self> {
        Ok(Self {
            tokens: Embedding::new(arena, TOKENS, Some(shape.padding_idx))?,
            rotary: Rotary::new(shape.config.rotated(), shape.positions(), arena.device())?,
            blocks: Block::stack(arena, shape)?,
        })
    }
}

impl Backbone for RotaryBackbone {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn embed(&self, plan: &Plan, _: Dropout) -> Result<Tensor> {
        self.tokens.forward(&plan.tokens)
    }

    fn embed_backward(&self, plan: &Plan, _: Dropout, grad: Tensor) -> Result<()> {
        self.tokens.backward(&plan.tokens, grad)
    }

    fn turns(&self, plan: &Plan) -> Result<Option<Turns>> {
        Ok(Some(self.rotary.at(&plan.positions)?))
    }

    /// Its final norm is part of the output layer: the head on CLS does not see it.
    fn last_norm(&self) -> Option<&LayerNorm> {
        None
    }
}

/// Cosines and sines of every position, [positions, R/2] each. Angle i of position p is `p * 10000^(-2i/R)`.
#[derive(Debug)]
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

/// `10000^(-2i/R)` for i in 0..R/2, computed in f32 as the reference does.
fn inv_freq(dim: i64) -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    let exponents = Tensor::f_arange_start_step(0, dim, 2, options)?.f_div_scalar(dim)?;
    Ok(Tensor::f_full([1], 10000.0, options)?.f_pow(&exponents)?.f_reciprocal()?)
}

impl Rotary {
    fn new(dim: i64, positions: i64, device: Device) -> Result<Self> {
        let positions = Tensor::f_arange(positions, (Kind::Float, Device::Cpu))?;
        let angles = positions.f_outer(&inv_freq(dim)?)?;
        Ok(Self { cos: angles.f_cos()?.f_to_device(device)?, sin: angles.f_sin()?.f_to_device(device)? })
    }

    /// The turns of N packed tokens.
    fn at(&self, positions: &Tensor) -> Result<Turns> {
        let pick = |table: &Tensor| table.f_index_select(0, positions)?.f_unsqueeze(1)?.f_unsqueeze(1);
        let (cos, sin) = (pick(&self.cos)?, pick(&self.sin)?);
        Ok(Turns { cos, sin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn load(tensors: &SafeTensors, name: &str) -> Tensor {
        let view = tensors.tensor(name).unwrap();
        let kind = if view.dtype() == safetensors::Dtype::I64 { Kind::Int64 } else { Kind::Float };
        let size: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        Tensor::from_data_size(view.data(), &size, kind)
    }

    #[test]
    fn golden_rotary_embedding() {
        let bytes = std::fs::read(test_support::golden_dir().join("rotary_embedding.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for dim in [4, 8] {
            let rotary = Rotary::new(dim, 17, Device::Cpu).unwrap();
            let close = |found: &Tensor, name: &str| {
                let expected = load(&tensors, &format!("dim{dim}.{name}"));
                assert_eq!(found.size(), expected.size());
                assert!((found - expected).abs().max().double_value(&[]) < 1e-6, "{name} of {dim}");
            };
            close(&rotary.cos, "cos");
            close(&rotary.sin, "sin");
            close(&inv_freq(dim).unwrap(), "inv_freq");
            // the reference takes [B, H, L, dim] as well as [B, L, H, dim]
            for head_first in [0, 1] {
                let input = |name: &str| load(&tensors, &format!("dim{dim}.head_first_{head_first}.{name}"));
                let swap = |x: &Tensor| if head_first == 1 { x.transpose(1, 2) } else { x.shallow_clone() };
                let x = swap(&input("x")).contiguous();
                let turns = rotary.at(&input("positions").view([-1])).unwrap();
                // [2, 6, 3, dim] as 12 packed tokens
                let packed = x.copy().view([12, 1, 3, dim]);
                turns.apply_(&packed).unwrap();
                close(&swap(&packed.view([2, 6, 3, dim])), &format!("head_first_{head_first}.out"));
                turns.undo_(&packed).unwrap();
                assert!((packed.view([2, 6, 3, dim]) - x).abs().max().double_value(&[]) < 1e-6);
            }
        }
    }
}
