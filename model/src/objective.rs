//! One micro-batch forward, its loss, and its gradients stage by stage from the output down.

use std::ops::Range;

use tch::Tensor;

use crate::batch::Batch;
use crate::config::LossConfig;
use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::head::{class_loss, to_rows};
use crate::loss::{Outputs, Targets, joint_loss};
use crate::model::Model;
use crate::plan::Plan;

/// Loss of every example of a micro-batch, in the batch's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossParts {
    /// Joint token cross entropy, 0 where nothing was dropped.
    pub ce: Vec<f64>,
    /// Weighted loss of the head on CLS, 0 where it is not trained.
    pub length: Vec<f64>,
    /// Logits of the head's classes; empty rows without a head.
    pub class_logits: Vec<Vec<f32>>,
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

    /// Sum of the head's losses.
    pub fn length_sum(&self) -> f64 {
        self.length.iter().sum()
    }

    /// Sum of both losses; divided by the number of examples it is the training loss.
    pub fn loss_sum(&self) -> f64 {
        self.ce_sum() + self.length_sum()
    }
}

/// The head's part of the loss, rows in sorted order.
struct Classes {
    logits: Vec<Vec<f32>>,
    losses: Vec<f64>,
    /// By the logits.
    grads: Vec<Vec<f64>>,
}

/// Whoever exchanges ranges of the arena with other ranks while a micro-batch is computed. A closure is one that waits for nothing.
pub trait Traffic {
    /// The parameters of a range are about to be used, rounded if products take them so: returns when they are there. Ranges ascend
    /// and together are the whole arena: what is used as it is, the matrices of the blocks from the first to the last, the output's.
    fn needs(&mut self, _range: Range<usize>) {}

    /// The gradients of a range have this micro-batch's whole contribution. Ranges are the same, in the opposite order.
    fn is_final(&mut self, range: Range<usize>);
}

impl<F: FnMut(Range<usize>)> Traffic for F {
    fn is_final(&mut self, range: Range<usize>) {
        self(range);
    }
}

impl Model {
    /// Losses of a micro-batch; adds `scale` times the gradient of their sum to the arena's gradients.
    ///
    /// `traffic` is told of every range of the arena before its parameters are used and as soon as its gradients are final.
    /// `dropout_seed` none turns dropout off; what is dropped depends on the seed and the batch's shape only. After an error
    /// the gradients hold part of the contribution and must be zeroed.
    ///
    /// # Errors
    /// A malformed batch, settings out of range or without the head they train, or memory is short.
    pub fn forward_backward(
        &mut self,
        batch: &Batch,
        loss: &LossConfig,
        scale: f64,
        dropout_seed: Option<u64>,
        traffic: &mut dyn Traffic,
    ) -> Result<LossParts> {
        self.check(batch, loss)?;
        if batch.visible() == 0 {
            self.settle_grads()?;
            self.stages.iter().for_each(|range| traffic.is_final(range.clone()));
            return Ok(LossParts::default());
        }
        let _guard = tch::no_grad_guard();
        if std::mem::take(&mut self.cleared) {
            self.arena_mut().clear_grads()?;
        }
        let dropout =
            dropout_seed.map_or(Dropout::OFF, |seed| Dropout::new(self.shape().config.dropout, seed));
        let plan = self.plan(batch)?;
        self.arena().refresh()?;
        let mut stages = self.stages.iter().rev();
        let mut on_need = || stages.next().map(|range| traffic.needs(range.clone())).unwrap_or_default();
        let encoded = self.backbone.encode(&plan, dropout, self.shape().recompute, &mut on_need)?;

        let targets = Targets::new(batch, &plan)?;
        let (ce, mut grad) = self.tokens_backward(&targets, &encoded.hidden, loss, scale)?;
        let head_dropout = dropout.site(self.backbone.blocks().len() as u64);
        let classes =
            self.head_backward(&plan, &targets, &encoded.hidden, &mut grad, loss, scale, head_dropout)?;
        let mut stages = self.stages.iter();
        let mut on_ready = || stages.next().map(|range| traffic.is_final(range.clone())).unwrap_or_default();
        self.backbone.backward(encoded, grad, &mut on_ready)?;
        Ok(parts(&plan, &targets, &ce, classes))
    }

    /// Losses of a micro-batch without dropout and gradients.
    ///
    /// # Errors
    /// As for [`forward_backward`](Self::forward_backward).
    pub fn loss(&self, batch: &Batch, loss: &LossConfig) -> Result<LossParts> {
        self.check(batch, loss)?;
        if batch.visible() == 0 {
            return Ok(LossParts::default());
        }
        let _guard = tch::no_grad_guard();
        let plan = self.plan(batch)?;
        let hidden = self.hidden(&plan)?;
        let targets = Targets::new(batch, &plan)?;
        let ce = if targets.is_empty() {
            vec![0.0; plan.order.len()]
        } else {
            let rows = self.output.normed(&hidden.f_index_select(0, &targets.rows)?)?.0;
            joint_loss(self.outputs(&rows), &targets, self.head_budget(loss), None)?.0
        };
        let logits = self.class_logits(&plan, &hidden)?;
        let classes = logits.map(|logits| Classes::new(&logits, &plan, &targets, loss)).transpose()?;
        Ok(parts(&plan, &targets, &ce, classes))
    }

    fn check(&self, batch: &Batch, loss: &LossConfig) -> Result<()> {
        loss.validate_for(&self.shape().config)?;
        batch.validate(self.shape())
    }

    /// Token losses of the sorted rows and their gradient by the hidden states [N, d].
    pub(crate) fn tokens_backward(
        &self,
        targets: &Targets,
        hidden: &Tensor,
        loss: &LossConfig,
        scale: f64,
    ) -> Result<(Vec<f64>, Tensor)> {
        let mut grad = hidden.f_zeros_like()?;
        if targets.is_empty() {
            self.output.padded.settle()?;
            return Ok((vec![0.0; targets.n_drops.len()], grad));
        }
        let (rows, saved) = self.output.normed(&hidden.f_index_select(0, &targets.rows)?)?;
        let (ce, rows_grad) = joint_loss(self.outputs(&rows), targets, self.head_budget(loss), Some(scale))?;
        let rows_grad = rows_grad.expect("a scale was given, so there is a gradient");
        let rows_grad = self.output.normed_backward(saved, rows_grad)?;
        let grad = grad.f_index_copy_(0, &targets.rows, &rows_grad)?;
        Ok((ce, grad))
    }

    fn outputs<'a>(&'a self, hidden: &'a Tensor) -> Outputs<'a> {
        Outputs { matrix: &self.output.padded, vocabulary: self.shape().num_embeddings, hidden }
    }

    fn head_budget(&self, loss: &LossConfig) -> usize {
        loss.head_budget(self.arena().device().is_cuda())
    }

    /// The head's losses; adds its gradients, and to `grad` that of the hidden states.
    #[allow(clippy::too_many_arguments)] // one step's whole state; a struct for it would be used once
    fn head_backward(
        &self,
        plan: &Plan,
        targets: &Targets,
        hidden: &Tensor,
        grad: &mut Tensor,
        loss: &LossConfig,
        scale: f64,
        dropout: Dropout,
    ) -> Result<Option<Classes>> {
        let Some(head) = &self.head else { return Ok(None) };
        let cls = hidden.f_index_select(0, &plan.cls_index)?;
        let (logits, tape) = head.forward(&cls, dropout)?;
        let classes = Classes::new(&logits, plan, targets, loss)?;
        let grads: Vec<f32> = classes.grads.iter().flatten().map(|value| (scale * value) as f32).collect();
        let grads = Tensor::f_from_slice(&grads)?.f_to_device(logits.device())?;
        let cls_grad = head.backward(tape, &grads.f_view_as(&logits)?)?;
        let _ = grad.f_index_add_(0, &plan.cls_index, &cls_grad)?;
        Ok(Some(classes))
    }
}

impl Classes {
    fn new(logits: &Tensor, plan: &Plan, targets: &Targets, loss: &LossConfig) -> Result<Self> {
        let logits = to_rows(logits)?;
        let mut classes = Self { losses: Vec::new(), grads: Vec::new(), logits };
        for (place, (logits, &drops)) in classes.logits.iter().zip(&targets.n_drops).enumerate() {
            let (value, grad) = match loss.class_of(drops) {
                None => (0.0, vec![0.0; logits.len()]),
                Some((class, weight)) if class < logits.len() => class_loss(logits, class, weight),
                Some(_) => {
                    return Err(Error::Batch {
                        place: format!("row {}", plan.order[place]),
                        problem: format!(
                            "{drops} tokens are missing, but the length head counts only to {}; raise model.num_classes",
                            logits.len() - 1
                        ),
                    });
                }
            };
            classes.losses.push(value);
            classes.grads.push(grad);
        }
        Ok(classes)
    }
}

/// Back in the batch's order.
fn parts(plan: &Plan, targets: &Targets, ce: &[f64], classes: Option<Classes>) -> LossParts {
    let rows = targets.n_drops.len();
    let (length, logits) = match classes {
        Some(classes) => (classes.losses, classes.logits),
        None => (vec![0.0; rows], vec![Vec::new(); rows]),
    };
    LossParts {
        ce: plan.unsort(ce),
        length: plan.unsort(&length),
        class_logits: plan.unsort(&logits),
        n_drops: plan.unsort(&targets.n_drops),
        computed_positions: plan.computed_positions(),
    }
}
