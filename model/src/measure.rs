//! Parts of a step by themselves, as a step computes them: for measuring how fast they are.

use tch::{Device, Kind, Tensor};

use crate::batch::Batch;
use crate::config::{LossConfig, Precision};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm;
use crate::layers::operand_kind;
use crate::loss::Targets;
use crate::model::Model;
use crate::ops::attention::Attention;

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
        let (context, tape) = attention.forward(qkv.shallow_clone())?;
        attention.backward(tape, &context, grad, config.nhead)
    }
}

/// Numbers of both signs, without randomness.
fn numbers(rows: i64, columns: i64, kind: Kind) -> Result<Tensor> {
    let count = Tensor::f_arange(rows * columns, (Kind::Float, Device::Cpu))?;
    Ok(count.f_mul_scalar(0.37)?.f_sin_()?.f_view([rows, columns])?.f_to_kind(kind)?)
}
