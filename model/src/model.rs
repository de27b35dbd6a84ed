//! The model: backbone, output layer and class head on one arena, and what it says of a batch.

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::arena::Arena;
use crate::backbone::{self, Backbone};
use crate::batch::Batch;
use crate::config::{Family, ModelShape};
use crate::dense::{DenseBatch, DenseOutput};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm;
use crate::head::ClassHead;
use crate::init;
use crate::layers::{LayerNorm, Linear, operand_kind};
use crate::layout::ParamLayout;
use crate::ops::norm::Normed;
use crate::parts::Parts;
use crate::plan::Plan;

/// An insertion language model of any of the reference's classes.
#[derive(Debug)]
pub struct Model {
    shape: ModelShape,
    arena: Arena,
    /// The ranges of the arena that backward finishes one after the other.
    pub(crate) stages: Vec<Range<usize>>,
    pub(crate) backbone: Box<dyn Backbone>,
    pub(crate) output: OutputLayer,
    pub(crate) head: Option<ClassHead>,
    /// Whether gradients count as 0 whatever they hold.
    pub(crate) cleared: bool,
}

/// Hidden states to token logits, with a norm before them or without.
#[derive(Debug)]
pub(crate) struct OutputLayer {
    norm: Option<LayerNorm>,
    kind: Kind,
    /// The matrix with the rows of zeros that follow it, for training.
    pub(crate) padded: Linear,
    /// The matrix itself, [V, d].
    weight: Tensor,
}

impl Model {
    /// A model with initial values that depend on the shape and the seed only.
    ///
    /// # Errors
    /// The shape does not validate, or memory is short.
    pub fn new(shape: ModelShape, seed: u64) -> Result<Self> {
        Self::new_on(shape, seed, Device::Cpu)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// As [`new`](Self::new), or there is no such device.
    pub fn new_on(shape: ModelShape, seed: u64, device: Device) -> Result<Self> {
        let layout = Arc::new(ParamLayout::new(&shape)?);
        let stages = layout.stages();
        let mut arena = Arena::zeros(layout, shape.precision, device)?;
        init::initialise(&mut arena, &shape, seed)?;
        Ok(Self {
            stages,
            backbone: backbone::build(&arena, &shape)?,
            output: OutputLayer::new(&arena, &shape)?,
            head: shape.num_classes().map(|_| ClassHead::new(&arena, &shape)).transpose()?,
            shape,
            arena,
            cleared: false,
        })
    }

    /// The shape the model was made with.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Parameters and gradients.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Parameters and gradients, to be changed.
    pub fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Makes all gradients 0. What the next micro-batch writes over anyway is left as it is until then, so gradients may only be
    /// read behind [`forward_backward`](Self::forward_backward) or [`settle_grads`](Self::settle_grads).
    pub fn clear_grads(&mut self) {
        self.cleared = true;
    }

    /// Makes up for micro-batches that a step did not have after all: gradients that were cleared become readable, and parameters
    /// that were changed are rounded. Later that would be too late: those of other ranks arrive rounded when the step ends, and
    /// rounding old values would undo them.
    ///
    /// # Errors
    /// A device that fails.
    pub fn settle_grads(&mut self) -> Result<()> {
        self.arena.refresh()?;
        if std::mem::take(&mut self.cleared) {
            let all = 0..self.arena.layout().len();
            let _ = self.arena.flat_grads().view(all)?.f_zero_()?;
        }
        Ok(())
    }

    /// Token logits [N, V] and, if there is a head, class logits [B, C] in the batch's order, without dropout; targets are not
    /// looked at.
    ///
    /// # Errors
    /// A malformed batch, or memory is short.
    pub fn logits(&self, batch: &Batch) -> Result<(Tensor, Option<Tensor>)> {
        batch.validate(&self.shape)?;
        if batch.visible() == 0 {
            let empty = |width: i64| Tensor::f_zeros([0, width], (Kind::Float, self.arena.device()));
            return Ok((empty(self.shape.num_embeddings)?, self.shape.num_classes().map(empty).transpose()?));
        }
        let _guard = tch::no_grad_guard();
        let plan = self.plan(batch)?;
        let hidden = self.hidden(&plan)?;
        let tokens = self.token_logits(&hidden)?;
        let classes = self.class_logits(&plan, &hidden)?;
        let Some(restore) = &plan.restore else { return Ok((tokens, classes)) };
        let places: Vec<i64> = plan.unsort(&(0..plan.order.len() as i64).collect::<Vec<_>>());
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.arena.device())?;
        let classes = classes.map(|classes| classes.f_index_select(0, &places)).transpose()?;
        Ok((tokens.f_index_select(0, restore)?, classes))
    }

    /// All that the model says of a padded batch, without dropout, places of padding included.
    ///
    /// # Errors
    /// A malformed batch, or memory is short.
    pub fn dense(&self, batch: &DenseBatch) -> Result<DenseOutput> {
        batch.validate(&self.shape)?;
        let _guard = tch::no_grad_guard();
        let plan = Plan::dense(batch, operand_kind(self.shape.precision), self.arena.device())?;
        let hidden = self.hidden(&plan)?;
        let class_logits = self.class_logits(&plan, &hidden)?;
        let rows_of = |tensor: &Tensor| tensor.f_view([batch.rows as i64, batch.width as i64, -1]);
        let token_logits = rows_of(&self.token_logits(&hidden)?)?;
        Ok(DenseOutput { hidden: rows_of(&hidden)?, token_logits, class_logits })
    }

    /// How a checked batch of at least one row is computed.
    pub(crate) fn plan(&self, batch: &Batch) -> Result<Plan> {
        let operands = operand_kind(self.shape.precision);
        Plan::new(batch, self.shape.config.nhead, operands, self.arena.device())
    }

    /// Hidden states [N, d] without dropout.
    pub(crate) fn hidden(&self, plan: &Plan) -> Result<Tensor> {
        self.arena.refresh()?;
        self.backbone.hidden(plan)
    }

    /// Class logits [B, C] of the plan's rows, without dropout; none if there is no head.
    pub(crate) fn class_logits(&self, plan: &Plan, hidden: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.head else { return Ok(None) };
        let cls = hidden.f_index_select(0, &plan.cls_index)?;
        Ok(Some(head.forward(&cls, Dropout::OFF)?.0))
    }

    /// What the token logits of hidden states [M, d] are products of: states [M, d] and the matrix [V, d], of one type.
    pub(crate) fn token_operands(&self, hidden: &Tensor) -> Result<(Tensor, &Tensor)> {
        Ok((self.output.normed(hidden)?.0, &self.output.weight))
    }

    /// Token logits [M, V] of hidden states [M, d].
    pub(crate) fn token_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        gemm::linear(&self.output.normed(hidden)?.0, &self.output.weight)
    }
}

impl OutputLayer {
    fn new(arena: &Arena, shape: &ModelShape) -> Result<Self> {
        let parts = Parts::of(shape.config.class);
        let kind = operand_kind(shape.precision);
        let norm = match shape.config.class.family() {
            Family::Rotary => LayerNorm::last(arena, shape, kind)?,
            Family::Gpt2 => None, // part of the backbone there
        };
        let padded = Linear::padded(arena, parts.output)?;
        let weight = padded.weight().f_narrow(0, 0, shape.num_embeddings)?;
        Ok(Self { norm, kind, padded, weight })
    }

    /// What the output matrix is applied to, [M, d] each.
    pub(crate) fn normed(&self, hidden: &Tensor) -> Result<(Tensor, Option<Normed>)> {
        Ok(match &self.norm {
            Some(norm) => {
                let normed = norm.forward(hidden)?;
                (normed.normed.shallow_clone(), Some(normed))
            }
            None => (hidden.f_to_kind(self.kind)?, None),
        })
    }

    /// Adds the norm's gradients and returns that of the hidden states.
    pub(crate) fn normed_backward(&self, saved: Option<Normed>, grad: Tensor) -> Result<Tensor> {
        match (&self.norm, saved) {
            (Some(norm), Some(saved)) => norm.backward(&saved, &grad),
            _ => Ok(grad),
        }
    }
}
