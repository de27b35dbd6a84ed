//! A table of vectors looked up by number.

use tch::Tensor;

use crate::arena::Arena;
use crate::error::Result;

/// Rows [n, d] of a matrix.
#[derive(Debug)]
pub(super) struct Embedding {
    weight: Tensor,
    weight_grad: Tensor,
    /// The row that takes part in forward but is never trained.
    frozen_row: Option<i64>,
}

impl Embedding {
    pub(super) fn new(arena: &Arena, name: &str, frozen_row: Option<i64>) -> Result<Self> {
        let weight = arena.views(&format!("{name}.weight"))?;
        Ok(Self { weight: weight.value, weight_grad: weight.grad, frozen_row })
    }

    /// [N] numbers -> [N, d].
    pub(super) fn forward(&self, numbers: &Tensor) -> Result<Tensor> {
        Ok(self.weight.f_index_select(0, numbers)?)
    }

    /// Adds the used rows' gradients. The values of `grad` may be changed.
    pub(super) fn backward(&self, numbers: &Tensor, mut grad: Tensor) -> Result<()> {
        if let Some(row) = self.frozen_row {
            let _ = grad.f_masked_fill_(&numbers.f_eq(row)?.f_unsqueeze(1)?, 0.0)?;
        }
        let mut sums = self.weight_grad.shallow_clone();
        // A GPU adds rows with one index in any order, unless it is told to sort them first.
        let _ = if grad.device().is_cuda() {
            sums.f_index_put_(&[Some(numbers)], &grad, true)?
        } else {
            sums.f_index_add_(0, numbers, &grad)?
        };
        Ok(())
    }
}
