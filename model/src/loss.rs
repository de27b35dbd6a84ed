//! The joint token loss: one softmax over all gaps x vocabulary of an example, with its gradients in the same pass.
//!
//! Whole examples are taken in groups whose logits fit a byte budget, so nothing of size positions x vocabulary of the
//! batch ever exists. For example b with rows R and targets p: `Z = logsumexp over R x V`, `loss = S Z - sum p z`,
//! `dz = S softmax - p`, where `S = sum p`.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::batch::Batch;
use crate::error::Result;
use crate::head::to_floats;
use crate::layers::Linear;
use crate::plan::Plan;

/// One example with drops.
#[derive(Debug)]
struct Example {
    /// Sorted place of its row.
    place: usize,
    /// Its rows among the head's input rows.
    rows: Range<usize>,
    /// (row among the head's input rows, token, share of the drops).
    targets: Vec<(usize, i64, f64)>,
}

/// What the head computes: the rows of examples with drops, CLS left out, and their targets.
#[derive(Debug)]
pub(crate) struct Targets {
    examples: Vec<Example>,
    /// [M] packed index of the head's input rows.
    pub(crate) rows: Tensor,
    /// Drops of each sorted row.
    pub(crate) n_drops: Vec<i64>,
}

impl Targets {
    pub(crate) fn new(batch: &Batch, plan: &Plan) -> Result<Self> {
        let n_drops: Vec<i64> = plan.order.iter().map(|&row| batch.n_drops(row)).collect();
        let (mut examples, mut rows) = (Vec::new(), Vec::new());
        for (place, (&row, &drops)) in plan.order.iter().zip(&n_drops).enumerate() {
            if drops == 0 {
                continue;
            }
            let start = rows.len();
            let mut targets = Vec::new();
            for (token, packed) in batch.row(row).zip(plan.row_ptr[place]..) {
                if packed == plan.cls[place] {
                    continue;
                }
                for entry in batch.gap(token) {
                    let share = batch.tgt_counts[entry] as f64 / (drops as f64 + 1e-9);
                    targets.push((rows.len(), batch.tgt_ids[entry], share));
                }
                rows.push(packed);
            }
            examples.push(Example { place, rows: start..rows.len(), targets });
        }
        Ok(Self { examples, rows: Tensor::f_from_slice(&rows)?, n_drops })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }
}

/// Per-example loss (sorted order) of `hidden` [M, d], group by group; with `scale`, adds `scale` times the gradient of the
/// output matrix and returns that of `hidden`. An example wider than the budget is a group of its own.
pub(crate) fn joint_loss(
    output: &Linear,
    vocabulary: i64,
    hidden: &Tensor,
    targets: &Targets,
    budget_mib: usize,
    scale: Option<f64>,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let mut losses = vec![0.0; targets.n_drops.len()];
    let mut grads = Vec::new();
    let rows_of = |bytes: usize| bytes / (4 * vocabulary as usize);
    for group in groups(&targets.examples, rows_of(budget_mib.saturating_mul(1 << 20))) {
        let rows = rows_spanned(group);
        let hidden = narrow(hidden, &rows)?;
        let logits = output.forward(&hidden)?;
        for strip in groups(group, rows_of(STRIP_BYTES)) {
            let strip_rows = rows_spanned(strip);
            let strip_rows = strip_rows.start - rows.start..strip_rows.end - rows.start;
            let softmax = StripSoftmax::new(narrow(&logits, &strip_rows)?, strip, vocabulary)?;
            for (example, loss) in strip.iter().zip(&softmax.losses) {
                losses[example.place] = *loss;
            }
            if let Some(scale) = scale {
                softmax.into_grad(scale)?;
            }
        }
        if scale.is_some() {
            grads.push(output.backward(&hidden, &logits)?);
        }
    }
    let grad = scale.map(|_| Tensor::f_cat(&grads, 0)).transpose()?;
    Ok((losses, grad))
}

/// Logits that go through softmax together: few enough to stay in a processor's cache over its passes.
const STRIP_BYTES: usize = 2 << 20;

fn rows_spanned(examples: &[Example]) -> Range<usize> {
    examples[0].rows.start..examples[examples.len() - 1].rows.end
}

fn narrow(tensor: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(tensor.f_narrow(0, rows.start as i64, rows.len() as i64)?)
}

/// Consecutive whole examples of at most `most_rows` rows in all, but at least one.
fn groups(examples: &[Example], most_rows: usize) -> Vec<&[Example]> {
    let mut groups = Vec::new();
    let mut rest = examples;
    while let Some(first) = rest.first() {
        let start = first.rows.start;
        let fitting = rest.iter().take_while(|example| example.rows.end - start <= most_rows).count();
        let (group, after) = rest.split_at(fitting.max(1));
        groups.push(group);
        rest = after;
    }
    groups
}

/// Exponentials of a strip's logits relative to each row's maximum, and what turns them into losses and gradients.
struct StripSoftmax {
    /// [rows, V]: exp(z - row maximum), in the logits' place.
    exponentials: Tensor,
    losses: Vec<f64>,
    /// [rows]: S exp(row maximum - Z).
    row_factors: Vec<f64>,
    /// [T] flat index of each target, and its share.
    target_index: Tensor,
    shares: Vec<f64>,
}

impl StripSoftmax {
    fn new(mut logits: Tensor, strip: &[Example], vocabulary: i64) -> Result<Self> {
        let first = strip[0].rows.start;
        let flat = |&(row, id, _): &(usize, i64, f64)| (row - first) as i64 * vocabulary + id;
        let targets = || strip.iter().flat_map(|example| &example.targets);
        let target_index = Tensor::f_from_slice(&targets().map(flat).collect::<Vec<i64>>())?;
        let target_logits = to_floats(&logits.f_view([-1])?.f_index_select(0, &target_index)?)?;

        let maxima = logits.f_amax(1, true)?;
        let exponentials = logits.f_sub_(&maxima)?.f_exp_()?;
        let maxima = to_floats(&maxima.f_view([-1])?)?;
        let sums = to_floats(&exponentials.f_sum_dim_intlist(1, false, Kind::Float)?)?;

        let mut losses = Vec::with_capacity(strip.len());
        let mut row_factors = vec![0.0; maxima.len()];
        let mut next_target = target_logits.iter();
        for example in strip {
            let rows = example.rows.start - first..example.rows.end - first;
            let log_sum = log_sum_exp(&maxima[rows.clone()], &sums[rows.clone()]);
            let total: f64 = example.targets.iter().map(|target| target.2).sum();
            let scores: f64 = example
                .targets
                .iter()
                .zip(&mut next_target)
                .map(|(target, &z)| target.2 * f64::from(z))
                .sum();
            losses.push(total * log_sum - scores);
            for row in rows {
                row_factors[row] = total * (f64::from(maxima[row]) - log_sum).exp();
            }
        }
        let shares = targets().map(|target| target.2).collect();
        Ok(Self { exponentials, losses, row_factors, target_index, shares })
    }

    /// Turns the exponentials into `scale (S softmax - p)`, in place.
    fn into_grad(self, scale: f64) -> Result<()> {
        let factors: Vec<f32> = self.row_factors.iter().map(|factor| (scale * factor) as f32).collect();
        let shares: Vec<f32> = self.shares.iter().map(|share| (-scale * share) as f32).collect();
        let mut grad = self.exponentials;
        let grad = grad.f_mul_(&Tensor::f_from_slice(&factors)?.f_unsqueeze(1)?)?;
        let _ = grad.f_view([-1])?.f_index_add_(0, &self.target_index, &Tensor::f_from_slice(&shares)?)?;
        Ok(())
    }
}

/// Log of the sum over rows of `exp(maximum) * sum`.
fn log_sum_exp(maxima: &[f32], sums: &[f32]) -> f64 {
    let top = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 =
        maxima.iter().zip(sums).map(|(&maximum, &sum)| f64::from(maximum - top).exp() * f64::from(sum)).sum();
    f64::from(top) + sum.ln()
}
