//! The joint loss by libtorch's operations. Sums stay on the device: what the examples need is sent before, and the host waits once, for
//! the losses of all groups.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::Group;
use crate::error::Result;
use crate::upload::{Sent, Slot, Upload};

/// Bytes of a logit and of its softmax, which are alive together.
pub(super) const BYTES: usize = 8;

/// As [`Group::run`] of all groups (at least one).
pub(super) fn run(
    groups: &[Group],
    scale: Option<f64>,
    losses: &mut [f64],
    grads: &mut Vec<Tensor>,
) -> Result<()> {
    let mut upload = Upload::default();
    let plans: Vec<Planned> = groups.iter().map(|group| Planned::new(group, scale, &mut upload)).collect();
    let sent = upload.send(groups[0].outputs.hidden.device())?;
    let (mut log_sums, mut scores) = (Vec::new(), Vec::new());
    for plan in &plans {
        log_sums.push(plan.run(&sent, scale.is_some(), &mut scores, grads)?);
    }
    let log_sums: Vec<f64> = Tensor::f_cat(&log_sums, 0)?.try_into()?;
    let scores: Vec<f32> = Tensor::f_cat(&scores, 0)?.try_into()?;
    let (examples, mut scores) = (groups.iter().flat_map(|group| group.examples), scores.iter());
    for (example, log_sum) in examples.zip(log_sums) {
        losses[example.place] = example.loss(log_sum, &mut scores);
    }
    Ok(())
}

/// A group with the places of its arrays.
struct Planned<'a> {
    group: &'a Group<'a>,
    pieces: Vec<Piece>,
    /// Rows of the longest example.
    longest: i64,
    /// [E * longest] the row among the group's that is an example's n-th; the number of rows if it has fewer.
    members: Slot,
    /// [R] the example of each row.
    owners: Slot,
    /// [E] what the softmax of an example is multiplied with.
    weights: Slot,
}

struct Piece {
    rows: Range<usize>,
    /// [T] places of the targets among the piece's logits.
    targets: Slot,
    /// [T] what is added to the gradient there; no place comes twice.
    shares: Slot,
}

impl<'a> Planned<'a> {
    fn new(group: &'a Group, scale: Option<f64>, upload: &mut Upload) -> Self {
        let width = group.outputs.matrix.weight().size()[0];
        let scale = scale.unwrap_or_default();
        let piece = |rows: Range<usize>, upload: &mut Upload| Piece {
            targets: upload
                .integers(group.targets(&rows).map(|(row, token, _)| row as i64 * width + token as i64)),
            shares: upload.floats(group.targets(&rows).map(|(_, _, share)| -scale * share)),
            rows,
        };
        let all = group.rows();
        let longest = group.examples.iter().map(|example| example.rows.len()).max().unwrap_or(0);
        let members = group.examples.iter().flat_map(|example| {
            let rows = example.rows.start - all.start..example.rows.end - all.start;
            rows.chain(std::iter::repeat(all.len())).take(longest).map(|row| row as i64)
        });
        let owners = group.examples.iter().enumerate();
        let owners = owners.flat_map(|(at, example)| example.rows.clone().map(move |_| at as i64));
        Self {
            pieces: group.pieces().into_iter().map(|rows| piece(rows, upload)).collect(),
            longest: longest as i64,
            members: upload.integers(members),
            owners: upload.integers(owners),
            weights: upload.floats(group.examples.iter().map(|example| scale * example.total())),
            group,
        }
    }

    /// The logarithms of the examples' sums, [E] f64; adds the logits of the targets and, if asked for, the gradients.
    fn run(
        &self,
        sent: &Sent,
        with_grads: bool,
        scores: &mut Vec<Tensor>,
        grads: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut row_sums = Vec::with_capacity(self.pieces.len());
        let mut kept = None;
        for piece in &self.pieces {
            let logits = self.group.logits(&piece.rows)?;
            scores.push(picked(&logits, &sent.integers(&piece.targets)?)?);
            let rows = Softmax::new(logits)?;
            row_sums.push(rows.log_sums.shallow_clone());
            kept = (self.pieces.len() == 1).then_some(rows);
        }
        let row_sums = Tensor::f_cat(&row_sums, 0)?;
        let none = row_sums.f_new_full([1], f64::NEG_INFINITY, (row_sums.kind(), row_sums.device()))?;
        let members =
            Tensor::f_cat(&[&row_sums, &none], 0)?.f_index_select(0, &sent.integers(&self.members)?)?;
        let log_sums = members.f_view([-1, self.longest])?.f_logsumexp(1, false)?;
        if with_grads {
            let owners = sent.integers(&self.owners)?;
            let factors = row_sums.f_sub(&log_sums.f_index_select(0, &owners)?)?.f_exp_()?;
            let factors = factors.f_mul(&sent.floats(&self.weights)?.f_index_select(0, &owners)?)?;
            self.add_grads(sent, &factors.f_to_kind(Kind::Float)?, kept, grads)?;
        }
        Ok(log_sums)
    }

    /// `factor softmax - share` of the rows' own softmax, which is `scale (S softmax - p)` of the example's, and what follows from it.
    fn add_grads(
        &self,
        sent: &Sent,
        factors: &Tensor,
        mut kept: Option<Softmax>,
        grads: &mut Vec<Tensor>,
    ) -> Result<()> {
        let first = self.group.rows().start;
        for piece in &self.pieces {
            let rows = match kept.take() {
                Some(rows) => rows,
                None => Softmax::new(self.group.logits(&piece.rows)?)?,
            };
            let start = (piece.rows.start - first) as i64;
            let factors = factors.f_narrow(0, start, piece.rows.len() as i64)?.f_unsqueeze(1)?;
            let (targets, shares) = (sent.integers(&piece.targets)?, sent.floats(&piece.shares)?);
            let grad = rows.grads(&factors, &targets, &shares, self.group.outputs.matrix.kind())?;
            grads.push(self.group.backward(&piece.rows, &grad)?);
        }
        Ok(())
    }
}

/// Softmax of each row by itself.
struct Softmax {
    /// [rows, V] f32.
    probabilities: Tensor,
    /// [rows] f64, the logarithms of the rows' sums of exponentials.
    log_sums: Tensor,
}

impl Softmax {
    /// By one kernel over all logits; the sums are then in the largest: `log sum = z - log softmax(z)`.
    fn new(logits: Tensor) -> Result<Self> {
        let (largest, places) = logits.f_max_dim(1, true)?;
        let probabilities = logits.f_softmax(1, Kind::Float)?;
        let of_largest = probabilities.f_gather(1, &places, false)?.f_to_kind(Kind::Double)?.f_log_()?;
        let log_sums = largest.f_to_kind(Kind::Double)?.f_sub_(&of_largest)?.f_squeeze_dim(1)?;
        Ok(Self { probabilities, log_sums })
    }

    /// `factors softmax`, at the targets with their shares added, in `kind`.
    fn grads(self, factors: &Tensor, targets: &Tensor, shares: &Tensor, kind: Kind) -> Result<Tensor> {
        let width = self.probabilities.size()[1];
        let rows = targets.f_div_scalar_mode(width, "floor")?;
        let there =
            picked(&self.probabilities, targets)?.f_mul_(&factors.f_view([-1])?.f_index_select(0, &rows)?)?;
        let there = there.f_add(&shares.f_to_kind(Kind::Float)?)?.f_to_kind(kind)?;
        let grads = Tensor::f_empty(self.probabilities.size(), (kind, factors.device()))?;
        let grads = self.probabilities.f_mul_out(&grads, factors)?;
        let _ = grads.f_view([-1])?.f_index_copy_(0, targets, &there)?;
        Ok(grads)
    }
}

/// The elements of a matrix at these places among all.
fn picked(matrix: &Tensor, places: &Tensor) -> Result<Tensor> {
    Ok(matrix.f_view([-1])?.f_index_select(0, places)?)
}
