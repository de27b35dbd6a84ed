//! The rotation of queries and keys by their positions.

use tch::Tensor;

use crate::error::Result;

/// Cosines and sines of N packed tokens, [N, 1, 1, R/2] each.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Turns {
    /// Turns `x` [N, S, H, h] in place: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) over the halves of the first R features.
    pub(crate) fn apply_(&self, x: &Tensor) -> Result<()> {
        self.turn_(x, &self.sin, &self.sin.f_neg()?)
    }

    /// The inverse of [`Turns::apply_`], which is also its gradient.
    pub(crate) fn undo_(&self, x: &Tensor) -> Result<()> {
        self.turn_(x, &self.sin.f_neg()?, &self.sin)
    }

    /// In f32, whatever the type of `x`.
    fn turn_(&self, x: &Tensor, sin: &Tensor, minus_sin: &Tensor) -> Result<()> {
        let half = self.cos.size()[3];
        let (mut first, mut second) = (x.f_narrow(3, 0, half)?, x.f_narrow(3, half, half)?);
        let turned = first.f_mul(&self.cos)?.f_addcmul_(&second, minus_sin)?;
        second.f_copy_(&second.f_mul(&self.cos)?.f_addcmul_(&first, sin)?)?;
        first.f_copy_(&turned)?;
        Ok(())
    }
}
