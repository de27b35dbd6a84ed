//! The joint token loss: one softmax over all gaps x vocabulary of an example, with its gradients in the same pass.
//!
//! Whole examples are taken in groups whose logits fit a byte budget, so nothing of size positions x vocabulary of the
//! batch ever exists. For example b with rows R and targets p: `Z = logsumexp over R x V`, `loss = S Z - sum p z`,
//! `dz = S softmax - p`, where `S = sum p`.

mod device;

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::batch::Batch;
use crate::error::Result;
use crate::kernels;
use crate::kernels::softmax::{RowSum, Target, into_grads, pick, row_sums};
use crate::layers::Linear;
use crate::plan::Plan;
use crate::upload::Upload;

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

impl Example {
    /// Sum of the shares.
    fn total(&self) -> f64 {
        self.targets.iter().map(|target| target.2).sum()
    }

    /// `S Z - sum p z`, given Z and the logits of all examples' targets from this one's on, which it uses up.
    fn loss<'a>(&self, log_sum: f64, scores: &mut impl Iterator<Item = &'a f32>) -> f64 {
        let scores = self.targets.iter().zip(scores);
        let score: f64 = scores.map(|(target, &score)| target.2 * f64::from(score)).sum();
        self.total() * log_sum - score
    }
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
        let mut upload = Upload::default();
        let slot = upload.integers(rows);
        let rows = upload.send(plan.tokens.device())?.integers(&slot)?;
        Ok(Self { examples, rows, n_drops })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }
}

/// The output matrix and what it is applied to.
#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a> {
    pub(crate) matrix: &'a Linear,
    /// Outputs that stand for a token; what follows them are paddings of the matrix.
    pub(crate) vocabulary: i64,
    /// [M, d].
    pub(crate) hidden: &'a Tensor,
}

/// Per-example loss (sorted order), group by group in `budget` bytes of logits; with `scale`, adds `scale` times the gradient of the
/// output matrix and returns that of the hidden states (f32).
pub(crate) fn joint_loss(
    outputs: Outputs,
    targets: &Targets,
    budget: usize,
    scale: Option<f64>,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let host = kernels::can_take(outputs.hidden);
    let bytes = match (host, outputs.matrix.kind()) {
        (false, _) => device::BYTES,
        (true, Kind::Float) => 4,
        (true, _) => 6, // the gradient lies beside the logits
    };
    let width = outputs.matrix.weight().size()[0] as usize;
    let most_rows = (budget / (bytes * width)).max(1);
    let groups = groups(&targets.examples, most_rows);
    let groups: Vec<Group> =
        groups.into_iter().map(|examples| Group { outputs, examples, most_rows }).collect();
    let mut losses = vec![0.0; targets.n_drops.len()];
    let mut grads = Vec::new();
    if host {
        groups.iter().try_for_each(|group| group.run(scale, &mut losses, &mut grads))?;
    } else {
        device::run(&groups, scale, &mut losses, &mut grads)?;
    }
    let grad = scale.map(|_| Tensor::f_cat(&grads, 0)).transpose()?;
    Ok((losses, grad))
}

/// Whole examples that are computed together.
struct Group<'a> {
    outputs: Outputs<'a>,
    examples: &'a [Example],
    /// Rows whose logits fit the budget.
    most_rows: usize,
}

/// What an example's gradient needs of its sums.
#[derive(Clone, Copy)]
struct Joint {
    /// Logarithm of the sum over rows and vocabulary.
    log_sum: f64,
    /// Sum of the target shares.
    total: f64,
}

impl Group<'_> {
    /// The rows in pieces that fit. One example can have more rows than that; then it is computed piece by piece, twice for the
    /// gradient: sums first.
    fn pieces(&self) -> Vec<Range<usize>> {
        let rows = self.rows();
        let piece = |start: usize| start..(start + self.most_rows).min(rows.end);
        rows.clone().step_by(self.most_rows).map(piece).collect()
    }

    fn rows(&self) -> Range<usize> {
        self.examples[0].rows.start..self.examples[self.examples.len() - 1].rows.end
    }

    fn run(&self, scale: Option<f64>, losses: &mut [f64], grads: &mut Vec<Tensor>) -> Result<()> {
        let pieces = self.pieces();
        let (mut sums, mut scores) = (Vec::with_capacity(self.rows().len()), Vec::new());
        let mut kept = None;
        for piece in &pieces {
            let logits = self.logits(piece)?;
            sums.extend(row_sums(&logits));
            scores.extend(pick(&logits, self.targets(piece).map(|(row, token, _)| (row, token))));
            kept = (pieces.len() == 1).then_some(logits);
        }
        let joints = self.joints(&sums, &scores, losses);
        let Some(scale) = scale else { return Ok(()) };
        for piece in &pieces {
            let logits = kept.take().map_or_else(|| self.logits(piece), Ok)?;
            let grad = self.grads(logits, piece, &joints, scale)?;
            grads.push(self.backward(piece, &grad)?);
        }
        Ok(())
    }

    /// Logits of some rows, with no share in any sum where there is no token.
    fn logits(&self, rows: &Range<usize>) -> Result<Tensor> {
        let Outputs { matrix, vocabulary, hidden } = self.outputs;
        let logits = matrix.product(&narrow(hidden, rows)?)?;
        let padding = logits.size()[1] - vocabulary;
        if padding > 0 {
            let _ = logits.f_narrow(1, vocabulary, padding)?.f_fill_(f64::NEG_INFINITY)?;
        }
        Ok(logits)
    }

    /// Adds the matrix's gradient and returns that of the hidden states of some rows (f32), given that of their logits.
    fn backward(&self, rows: &Range<usize>, grad: &Tensor) -> Result<Tensor> {
        let grad = self.outputs.matrix.product_backward(&narrow(self.outputs.hidden, rows)?, grad)?;
        Ok(grad.f_to_kind(Kind::Float)?)
    }

    /// The targets of some rows: (row among them, token, share).
    fn targets<'a>(&'a self, rows: &'a Range<usize>) -> impl Iterator<Item = (usize, usize, f64)> + 'a {
        let all = self.examples.iter().flat_map(|example| &example.targets);
        all.filter(|target| rows.contains(&target.0))
            .map(|&(row, token, share)| (row - rows.start, token as usize, share))
    }

    /// The examples' losses, and what their gradients need.
    fn joints(&self, sums: &[RowSum], scores: &[f32], losses: &mut [f64]) -> Vec<Joint> {
        let first = self.examples[0].rows.start;
        let mut scores = scores.iter();
        let joint = |example: &Example| {
            let rows = example.rows.start - first..example.rows.end - first;
            let log_sum = log_sum_exp(&sums[rows]);
            losses[example.place] = example.loss(log_sum, &mut scores);
            Joint { log_sum, total: example.total() }
        };
        self.examples.iter().map(joint).collect()
    }

    /// `scale (S softmax - p)` of some rows.
    fn grads(&self, logits: Tensor, rows: &Range<usize>, joints: &[Joint], scale: f64) -> Result<Tensor> {
        let (mut log_sums, mut weights) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (example, joint) in self.examples.iter().zip(joints) {
            let shared = example.rows.start.max(rows.start)..example.rows.end.min(rows.end);
            log_sums.extend(shared.clone().map(|_| joint.log_sum as f32));
            weights.extend(shared.map(|_| (scale * joint.total) as f32));
        }
        let target =
            |(row, token, share): (usize, usize, f64)| Target { row, token, share: (scale * share) as f32 };
        let targets: Vec<Target> = self.targets(rows).map(target).collect();
        into_grads(logits, &log_sums, &weights, &targets, self.outputs.matrix.kind())
    }
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

/// Log of the sum over rows.
fn log_sum_exp(rows: &[RowSum]) -> f64 {
    let top = rows.iter().map(|row| row.max).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = rows.iter().map(|row| f64::from(row.max - top).exp() * f64::from(row.sum)).sum();
    f64::from(top) + sum.ln()
}
