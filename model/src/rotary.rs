//! Rotary position embedding: the first R features of every query and key head are turned by an angle per position.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Cosines and sines of every position 0..=max_length, [max_length + 1, R/2] each.
///
/// Angle i of position p is `p * 10000^(-2i/R)`, computed in f32 as the reference does.
#[derive(Debug)]
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(crate) fn new(dim: i64, max_length: i64) -> Result<Self> {
        let options = (Kind::Float, Device::Cpu);
        let exponents = Tensor::f_arange_start_step(0, dim, 2, options)?.f_div_scalar(dim)?;
        let inv_freq = Tensor::f_full([1], 10000.0, options)?.f_pow(&exponents)?.f_reciprocal()?;
        let positions = Tensor::f_arange_start_step(0, max_length + 1, 1, options)?;
        let angles = positions.f_outer(&inv_freq)?;
        Ok(Self { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// The turns of N packed tokens.
    pub(crate) fn at(&self, positions: &Tensor) -> Result<Turns> {
        let pick = |table: &Tensor| table.f_index_select(0, positions)?.f_unsqueeze(1)?.f_unsqueeze(1);
        let (cos, sin) = (pick(&self.cos)?, pick(&self.sin)?);
        let minus_sin = sin.f_neg()?;
        Ok(Turns { cos, sin, minus_sin })
    }
}

/// Rotation of N packed tokens, [N, 1, 1, R/2] each.
#[derive(Debug)]
pub(crate) struct Turns {
    cos: Tensor,
    sin: Tensor,
    minus_sin: Tensor,
}

impl Turns {
    /// Turns `x` [N, S, H, h] in place: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) over the halves of the first R features.
    pub(crate) fn apply_(&self, x: &Tensor) -> Result<()> {
        self.turn_(x, &self.sin, &self.minus_sin)
    }

    /// The inverse of [`Turns::apply_`], which is also its gradient.
    pub(crate) fn undo_(&self, x: &Tensor) -> Result<()> {
        self.turn_(x, &self.minus_sin, &self.sin)
    }

    fn turn_(&self, x: &Tensor, sin: &Tensor, minus_sin: &Tensor) -> Result<()> {
        let half = self.cos.size()[3];
        let mut first = x.f_narrow(3, 0, half)?;
        let mut second = x.f_narrow(3, half, half)?;
        let turned = first.f_mul(sin)?;
        let _ = first.f_mul_(&self.cos)?.f_addcmul_(&second, minus_sin)?;
        let _ = second.f_mul_(&self.cos)?.f_add_(&turned)?;
        Ok(())
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
            let rotary = Rotary::new(dim, 16).unwrap();
            let close = |found: &Tensor, name: &str| {
                let expected = load(&tensors, &format!("dim{dim}.{name}"));
                assert_eq!(found.size(), expected.size());
                assert!((found - expected).abs().max().double_value(&[]) < 1e-6, "{name} of {dim}");
            };
            close(&rotary.cos, "cos");
            close(&rotary.sin, "sin");
            let x = load(&tensors, &format!("dim{dim}.head_first_0.x"));
            let positions = load(&tensors, &format!("dim{dim}.head_first_0.positions")).view([-1]);
            let turns = rotary.at(&positions).unwrap();
            // [2, 6, 3, dim] as 12 packed tokens
            let packed = x.copy().view([12, 1, 3, dim]);
            turns.apply_(&packed).unwrap();
            close(&packed.view([2, 6, 3, dim]), "head_first_0.out");
            turns.undo_(&packed).unwrap();
            assert!((packed.view([2, 6, 3, dim]) - x).abs().max().double_value(&[]) < 1e-6);
        }
    }
}
