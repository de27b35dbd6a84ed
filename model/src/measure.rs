//! Parts of a step by themselves, as a step computes them: for measuring how fast they are.

use tch::{Device, Kind, Tensor};

use crate::batch::Batch;
use crate::config::{LossConfig, Precision};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm;
use crate::kernels::softmax::{into_grads, row_sums};
use crate::layers::operand_kind;
use crate::loss::Targets;
use crate::model::Model;
use crate::ops::activation::{Curve, activate, activate_backward};
use crate::ops::attention::Attention;
use crate::ops::norm::{Weights, add_norm, add_norm_backward};

/// The operands of a linear map without a bias: x [n, in], weight [out, in], gradient of the output [n, out].
#[derive(Debug)]
pub struct LinearMap {
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    weight_grad: Tensor,
}

impl LinearMap {
    /// With numbers of both signs.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(rows: i64, inputs: i64, outputs: i64, precision: Precision) -> Result<Self> {
        let operand = |rows, columns| numbers(rows, columns, operand_kind(precision));
        Ok(Self {
            x: operand(rows, inputs)?,
            weight: operand(outputs, inputs)?,
            grad: operand(rows, outputs)?,
            weight_grad: Tensor::f_zeros([outputs, inputs], (Kind::Float, Device::Cpu))?,
        })
    }

    /// `x weight^T`, [n, out].
    ///
    /// # Errors
    /// Memory is short.
    pub fn forward(&self) -> Result<Tensor> {
        gemm::linear(&self.x, &self.weight)
    }

    /// `grad weight`, [n, in].
    ///
    /// # Errors
    /// Memory is short.
    pub fn input_grad(&self) -> Result<Tensor> {
        gemm::input_grad(&self.grad, &self.weight)
    }

    /// Adds `grad^T x` to the weight's gradient.
    ///
    /// # Errors
    /// Memory is short.
    pub fn add_weight_grad(&self) -> Result<()> {
        gemm::weight_grad(&self.weight_grad, &self.grad, &self.x, false)
    }
}

impl Model {
    /// Sum of the token losses of given hidden states [N, d], rows of the batch sorted by length. Adds the gradients of
    /// what follows the last block.
    ///
    /// # Errors
    /// A malformed batch, or memory is short.
    pub fn token_head(&mut self, batch: &Batch, hidden: &Tensor, loss: &LossConfig) -> Result<f64> {
        batch.validate(self.shape())?;
        let _guard = tch::no_grad_guard();
        self.arena().refresh()?;
        let targets = Targets::new(batch, &self.plan(batch)?)?;
        Ok(self.tokens_backward(&targets, hidden, loss, 1.0)?.0.iter().sum())
    }

    /// Attention of a block, forward and backward, given queries, keys and values [N, 3, H, h], which may be changed, and the
    /// gradient of the context [N, H h]; rows of the batch sorted by length.
    ///
    /// # Errors
    /// A malformed batch, or memory is short.
    pub fn attention(&self, batch: &Batch, qkv: &Tensor, grad: &Tensor, dropout_seed: u64) -> Result<Tensor> {
        batch.validate(self.shape())?;
        let _guard = tch::no_grad_guard();
        let config = &self.shape().config;
        let plan = self.plan(batch)?;
        let turns = self.backbone.turns(&plan)?;
        let attention = Attention {
            plan: &plan,
            turns: turns.as_ref(),
            dropout: Dropout::new(config.dropout, dropout_seed),
            kind: operand_kind(self.shape().precision),
        };
        let (_, tape) = attention.forward(qkv.shallow_clone())?;
        attention.backward(tape, grad, config.nhead)
    }
}

/// Rows [n, width] for the small kernels between the products.
#[derive(Debug)]
pub struct Rows {
    values: Tensor,
    grad: Tensor,
    weight: Tensor,
    weight_grad: Tensor,
    kind: Kind,
}

impl Rows {
    /// With numbers of both signs; results are of the type that products of `precision` take.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(rows: i64, width: i64, precision: Precision) -> Result<Self> {
        Ok(Self {
            values: numbers(rows, width, Kind::Float)?,
            grad: numbers(rows, width, Kind::Float)?,
            weight: numbers(1, width, Kind::Float)?.f_view([width])?,
            weight_grad: Tensor::f_zeros([width], (Kind::Float, Device::Cpu))?,
            kind: operand_kind(precision),
        })
    }

    /// Layer norm, forward and backward.
    ///
    /// # Errors
    /// Memory is short.
    pub fn norm(&self) -> Result<()> {
        let weights = Weights {
            weight: &self.weight,
            weight_grad: &self.weight_grad,
            bias: None,
            bias_grad: None,
            eps: 1e-5,
            kind: self.kind,
        };
        let normed = add_norm(&self.values, None, &weights)?;
        let mut grad = self.grad.f_zeros_like()?;
        add_norm_backward(&mut grad, &self.grad, &normed, &weights, None)?;
        Ok(())
    }

    /// A bias and GELU, forward and backward.
    ///
    /// # Errors
    /// Memory is short.
    pub fn gelu(&self) -> Result<()> {
        let activated = activate(&self.values, Some(&self.weight), Curve::TanhGelu, self.kind)?;
        drop(activate_backward(&self.grad, &activated, Some(&self.weight_grad), Curve::TanhGelu)?);
        Ok(())
    }

    /// Sums of exponentials and the gradient of a cross entropy without targets, of the rows as logits.
    ///
    /// # Errors
    /// Memory is short.
    pub fn softmax(&self) -> Result<()> {
        let log_sums: Vec<f32> = row_sums(&self.values).iter().map(|row| row.max + row.sum.ln()).collect();
        let weights = vec![1.0; log_sums.len()];
        drop(into_grads(self.values.shallow_clone(), &log_sums, &weights, &[], self.kind)?);
        Ok(())
    }
}

/// Numbers of both signs, without randomness.
fn numbers(rows: i64, columns: i64, kind: Kind) -> Result<Tensor> {
    let count = Tensor::f_arange(rows * columns, (Kind::Float, Device::Cpu))?;
    Ok(count.f_mul_scalar(0.37)?.f_sin_()?.f_view([rows, columns])?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::close;

    /// What is measured must be what a step computes, not less.
    #[test]
    fn parts_do_their_work() {
        for precision in [Precision::Fp32, Precision::Bf16] {
            let map = LinearMap::new(5, 32, 16, precision).unwrap();
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let expect = |found: &Tensor, expected: Tensor, what| {
                close(found, &expected.to_kind(Kind::Float), 1e-5, what);
            };
            expect(&map.forward().unwrap(), double(&map.x).mm(&double(&map.weight).tr()), "forward");
            expect(&map.input_grad().unwrap(), double(&map.grad).mm(&double(&map.weight)), "input");
            map.add_weight_grad().unwrap();
            expect(&map.weight_grad, double(&map.grad).tr().mm(&double(&map.x)), "weight");
            for part in [Rows::norm, Rows::gelu] {
                let rows = Rows::new(7, 64, precision).unwrap();
                part(&rows).unwrap();
                assert!(rows.weight_grad.abs().sum(Kind::Double).double_value(&[]) > 0.0);
            }
            Rows::new(7, 64, precision).unwrap().softmax().unwrap();
        }
    }
}
