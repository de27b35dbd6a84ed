//! The stopping model: one micro-batch forward, its loss, and its gradients stage by stage from the output down.

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::arena::Arena;
use crate::backbone::{Block, BlockTape, Embedding, Flow};
use crate::batch::Batch;
use crate::config::{LossConfig, ModelShape};
use crate::dropout::Dropout;
use crate::error::Result;
use crate::head::{StopHead, stopping_loss, to_pairs};
use crate::init;
use crate::layers::{LayerNorm, Linear};
use crate::layout::ParamLayout;
use crate::loss::{Targets, joint_loss};
use crate::plan::Plan;
use crate::rotary::Rotary;

/// Loss of every example of a micro-batch, in the batch's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossParts {
    /// Joint token cross entropy, 0 where nothing was dropped.
    pub ce: Vec<f64>,
    /// Weighted stopping loss.
    pub length: Vec<f64>,
    /// Logits of "complete" and "tokens missing".
    pub stop_logits: Vec<[f32; 2]>,
    /// Dropped tokens.
    pub n_drops: Vec<i64>,
    /// Positions that attention computed, its padding included; a batch without padding has as many as visible tokens.
    pub computed_positions: i64,
}

impl LossParts {
    /// Examples.
    pub fn examples(&self) -> usize {
        self.ce.len()
    }

    /// Sum of the token losses.
    pub fn ce_sum(&self) -> f64 {
        self.ce.iter().sum()
    }

    /// Sum of the stopping losses.
    pub fn length_sum(&self) -> f64 {
        self.length.iter().sum()
    }

    /// Sum of both losses; divided by the number of examples it is the training loss.
    pub fn loss_sum(&self) -> f64 {
        self.ce_sum() + self.length_sum()
    }
}

/// Rotary insertion language model with a stopping head.
#[derive(Debug)]
pub struct StoppingModel {
    shape: ModelShape,
    arena: Arena,
    stages: Vec<Range<usize>>,
    embedding: Embedding,
    rotary: Rotary,
    blocks: Vec<Block>,
    final_norm: Option<LayerNorm>,
    output: Linear,
    stop: StopHead,
}

impl StoppingModel {
    /// A model with initial values that depend on the shape and the seed only.
    ///
    /// # Errors
    /// The shape does not validate, or memory is short.
    pub fn new(shape: ModelShape, seed: u64) -> Result<Self> {
        let layout = Arc::new(ParamLayout::new(&shape)?);
        let stages = layout.stages();
        let mut arena = Arena::zeros(layout)?;
        init::initialise(&mut arena, &shape, seed)?;
        let config = &shape.config;
        let blocks = (0..config.num_layers).map(|i| Block::new(&arena, &shape, i)).collect::<Result<_>>()?;
        let final_norm = (!config.final_layer_without_normalization)
            .then(|| LayerNorm::new(&arena, "output_layer.norm_final", config.layer_norm_eps))
            .transpose()?;
        Ok(Self {
            stages,
            embedding: Embedding::new(&arena, shape.padding_idx)?,
            rotary: Rotary::new(config.rotary_emb_dim, shape.max_length)?,
            blocks,
            final_norm,
            output: Linear::new(&arena, "output_layer.linear", false, shape.precision)?,
            stop: StopHead::new(&arena, config.layer_norm_eps)?,
            shape,
            arena,
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

    /// Losses of a micro-batch; adds `scale` times the gradient of their sum to the arena's gradients.
    ///
    /// `on_ready` is called with a range of the arena as soon as it has this micro-batch's whole contribution: first what
    /// follows the last block, then the blocks from the last to the first, then the embedding; together the whole arena.
    /// `dropout_seed` none turns dropout off; what is dropped depends on the seed and the batch's shape only. After an error
    /// the gradients hold part of the contribution and must be zeroed.
    ///
    /// # Errors
    /// A malformed batch, settings out of range, or memory is short.
    pub fn forward_backward(
        &mut self,
        batch: &Batch,
        loss: &LossConfig,
        scale: f64,
        dropout_seed: Option<u64>,
        on_ready: &mut dyn FnMut(Range<usize>),
    ) -> Result<LossParts> {
        loss.validate()?;
        batch.validate(&self.shape)?;
        if batch.visible() == 0 {
            self.stages.iter().cloned().for_each(on_ready);
            return Ok(LossParts::default());
        }
        let _guard = tch::no_grad_guard();
        let dropout = dropout_seed.map_or(Dropout::OFF, |seed| Dropout::new(self.shape.config.dropout, seed));
        let plan = Plan::new(batch, self.shape.config.nhead)?;
        let flow = self.flow(&plan, dropout)?;
        let (hidden, tapes) = self.encode(&plan, &flow)?;

        let head_dropout = dropout.site(self.blocks.len() as u64);
        let (parts, mut grad) = self.heads_backward(batch, &plan, &hidden, loss, scale, head_dropout)?;
        let mut stages = self.stages.iter().cloned();
        stages.next().map(&mut *on_ready);
        for (block, tape) in self.blocks.iter().zip(tapes).rev() {
            grad = block.backward(tape, &grad, &flow)?;
            stages.next().map(&mut *on_ready);
        }
        self.embedding.backward(&plan.tokens, &grad)?;
        stages.for_each(on_ready);
        Ok(parts)
    }

    /// Losses of a micro-batch without dropout and gradients.
    ///
    /// # Errors
    /// A malformed batch, settings out of range, or memory is short.
    pub fn loss(&self, batch: &Batch, loss: &LossConfig) -> Result<LossParts> {
        loss.validate()?;
        batch.validate(&self.shape)?;
        if batch.visible() == 0 {
            return Ok(LossParts::default());
        }
        let _guard = tch::no_grad_guard();
        let plan = Plan::new(batch, self.shape.config.nhead)?;
        let hidden = self.hidden(&plan)?;
        let targets = Targets::new(batch, &plan)?;
        let ce = if targets.is_empty() {
            vec![0.0; plan.order.len()]
        } else {
            let rows = self.output_rows(&hidden.f_index_select(0, &targets.rows)?)?;
            let (vocabulary, budget) = (self.shape.num_embeddings, loss.head_budget_mib);
            joint_loss(&self.output, vocabulary, &rows, &targets, budget, None)?.0
        };
        let pairs = to_pairs(&self.stop_logits(&plan, &hidden)?)?;
        Ok(parts(&plan, &targets, ce, pairs, loss))
    }

    /// Token logits [N, V] and class logits [B, 2] in the batch's order, without dropout; targets are not looked at.
    ///
    /// # Errors
    /// A malformed batch, or memory is short.
    pub fn logits(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        batch.validate(&self.shape)?;
        if batch.visible() == 0 {
            let empty = |width: i64| Tensor::f_zeros([0, width], (Kind::Float, Device::Cpu));
            return Ok((empty(self.shape.num_embeddings)?, empty(2)?));
        }
        let _guard = tch::no_grad_guard();
        let plan = Plan::new(batch, self.shape.config.nhead)?;
        let hidden = self.hidden(&plan)?;
        let tokens = self.output.forward(&self.output_rows(&hidden)?)?;
        let classes = self.stop_logits(&plan, &hidden)?;
        let Some(restore) = &plan.restore else { return Ok((tokens, classes)) };
        let places: Vec<i64> = plan.unsort(&(0..plan.order.len() as i64).collect::<Vec<_>>());
        let classes = classes.f_index_select(0, &Tensor::f_from_slice(&places)?)?;
        Ok((tokens.f_index_select(0, restore)?, classes))
    }

    /// Hidden states [N, d] of the plan's sorted tokens, without dropout.
    pub(crate) fn hidden(&self, plan: &Plan) -> Result<Tensor> {
        let flow = self.flow(plan, Dropout::OFF)?;
        let mut x = self.embedding.forward(&plan.tokens)?;
        for block in &self.blocks {
            x = block.forward(&x, &flow)?.0;
        }
        Ok(x)
    }

    /// Class logits [B, 2] of the plan's sorted rows, without dropout.
    pub(crate) fn stop_logits(&self, plan: &Plan, hidden: &Tensor) -> Result<Tensor> {
        let cls = hidden.f_index_select(0, &Tensor::f_from_slice(&plan.cls)?)?;
        Ok(self.stop.forward(&cls, Dropout::OFF)?.0)
    }

    /// Token logits [M, V] of hidden states [M, d].
    pub(crate) fn token_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output.forward(&self.output_rows(hidden)?)
    }

    fn output_rows(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(match &self.final_norm {
            Some(norm) => norm.forward(hidden)?.0,
            None => hidden.shallow_clone(),
        })
    }

    fn flow<'a>(&self, plan: &'a Plan, dropout: Dropout) -> Result<Flow<'a>> {
        Ok(Flow { turns: self.rotary.at(&plan.positions)?, buckets: &plan.buckets, dropout })
    }

    fn encode(&self, plan: &Plan, flow: &Flow) -> Result<(Tensor, Vec<BlockTape>)> {
        let mut x = self.embedding.forward(&plan.tokens)?;
        let mut tapes = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (out, tape) = block.forward(&x, flow)?;
            x = out;
            tapes.push(tape);
        }
        Ok((x, tapes))
    }

    /// Both heads: losses, the heads' gradients, and the gradient of the hidden states [N, d].
    fn heads_backward(
        &self,
        batch: &Batch,
        plan: &Plan,
        hidden: &Tensor,
        loss: &LossConfig,
        scale: f64,
        dropout: Dropout,
    ) -> Result<(LossParts, Tensor)> {
        let cls_index = Tensor::f_from_slice(&plan.cls)?;
        let cls = hidden.f_index_select(0, &cls_index)?;
        let (logits, stop_tape) = self.stop.forward(&cls, dropout)?;
        let pairs = to_pairs(&logits)?;
        let targets = Targets::new(batch, plan)?;
        let (ce, mut grad) = self.tokens_backward(&targets, hidden, loss, scale)?;

        let stop_grads: Vec<f32> = pairs
            .iter()
            .zip(&targets.n_drops)
            .flat_map(|(&pair, &drops)| stopping_loss(pair, drops > 0, loss).1)
            .map(|value| (scale * value) as f32)
            .collect();
        let stop_grads = Tensor::f_from_slice(&stop_grads)?.f_view([-1, 2])?;
        let cls_grad = self.stop.backward(stop_tape, &stop_grads)?;
        let grad = grad.f_index_add_(0, &cls_index, &cls_grad)?;
        Ok((parts(plan, &targets, ce, pairs, loss), grad))
    }

    /// Token losses of the sorted rows and their gradient by the hidden states.
    fn tokens_backward(
        &self,
        targets: &Targets,
        hidden: &Tensor,
        loss: &LossConfig,
        scale: f64,
    ) -> Result<(Vec<f64>, Tensor)> {
        let mut grad = hidden.f_zeros_like()?;
        if targets.is_empty() {
            return Ok((vec![0.0; targets.n_drops.len()], grad));
        }
        let mut rows = hidden.f_index_select(0, &targets.rows)?;
        let mut taped = None;
        if let Some(norm) = &self.final_norm {
            let (normed, tape) = norm.forward(&rows)?;
            rows = normed;
            taped = Some((norm, tape));
        }
        let (vocabulary, budget) = (self.shape.num_embeddings, loss.head_budget_mib);
        let (ce, rows_grad) = joint_loss(&self.output, vocabulary, &rows, targets, budget, Some(scale))?;
        let rows_grad = rows_grad.expect("a scale was given, so there is a gradient");
        let rows_grad = match taped {
            Some((norm, tape)) => norm.backward(tape, &rows_grad)?,
            None => rows_grad,
        };
        let grad = grad.f_index_copy_(0, &targets.rows, &rows_grad)?;
        Ok((ce, grad))
    }
}

fn parts(plan: &Plan, targets: &Targets, ce: Vec<f64>, pairs: Vec<[f32; 2]>, loss: &LossConfig) -> LossParts {
    let length: Vec<f64> = pairs
        .iter()
        .zip(&targets.n_drops)
        .map(|(&pair, &drops)| stopping_loss(pair, drops > 0, loss).0)
        .collect();
    LossParts {
        ce: plan.unsort(&ce),
        length: plan.unsort(&length),
        stop_logits: plan.unsort(&pairs),
        n_drops: plan.unsort(&targets.n_drops),
        computed_positions: plan.computed_positions(),
    }
}
