//! How a micro-batch is computed: rows sorted by length, and cut into buckets that attend together.

use tch::{Device, Kind, Tensor};

use crate::batch::Batch;
use crate::bucket::{Bucket, Pending, buckets, score_bias};
use crate::dense::{AttentionMask, DenseBatch};
use crate::error::Result;
use crate::kernels;
use crate::upload::Upload;

/// A batch on the device, its rows sorted by length (stable), with the way back to the caller's order.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The caller's row at each sorted place.
    pub(crate) order: Vec<usize>,
    /// [B + 1] of the sorted rows.
    pub(crate) row_ptr: Vec<i64>,
    /// [N] token ids, sorted rows.
    pub(crate) tokens: Tensor,
    /// [N] positions, sorted rows.
    pub(crate) positions: Tensor,
    /// [B] packed index of each sorted row's CLS.
    pub(crate) cls: Vec<i64>,
    /// The same on the device.
    pub(crate) cls_index: Tensor,
    /// Rows that attend together; they cover all rows in order. None where a kernel takes the rows as they are.
    pub(crate) buckets: Vec<Bucket>,
    /// Sorted packed index of each of the caller's tokens; none if the rows came sorted.
    pub(crate) restore: Option<Tensor>,
    /// Type in which buckets attend.
    pub(crate) kind: Kind,
}

impl Plan {
    /// Positions that attention computes, its padding included.
    pub(crate) fn computed_positions(&self) -> i64 {
        if self.buckets.is_empty() {
            return self.row_ptr.last().copied().unwrap_or(0);
        }
        self.buckets.iter().map(|bucket| bucket.rows * bucket.width).sum()
    }

    /// Plans a validated batch of at least one row for `heads` attention heads of a model whose products take `operands`.
    pub(crate) fn new(batch: &Batch, heads: i64, operands: Kind, device: Device) -> Result<Self> {
        let kind = bucket_kind(operands, device);
        let mut order: Vec<usize> = (0..batch.rows()).collect();
        order.sort_by_key(|&row| batch.row(row).len());
        let sorted = order.iter().enumerate().all(|(place, &row)| place == row);
        let mut row_ptr = vec![0];
        let mut cls = Vec::with_capacity(order.len());
        let mut source = Vec::with_capacity(batch.visible());
        for &row in &order {
            cls.push(source.len() as i64 + batch.cls[row]);
            source.extend(batch.row(row));
            row_ptr.push(source.len() as i64);
        }
        let mut upload = Upload::default();
        let tokens = upload.integers(source.iter().map(|&token| batch.tokens[token]));
        let positions = upload.integers(source.iter().map(|&token| batch.positions[token]));
        let cls_index = upload.integers(cls.iter().copied());
        let restore = (!sorted).then(|| upload.integers(invert(&source)));
        let has_kernel = kernels::are_for(device);
        let pending = if has_kernel { Vec::new() } else { buckets(&row_ptr, heads, device, &mut upload) };
        let sent = upload.send(device)?;
        let arrive = |bucket: Pending| bucket.arrive(&sent, kind);
        Ok(Self {
            tokens: sent.integers(&tokens)?,
            positions: sent.integers(&positions)?,
            cls_index: sent.integers(&cls_index)?,
            buckets: pending.into_iter().map(arrive).collect::<Result<_>>()?,
            restore: restore.map(|restore| sent.integers(&restore)).transpose()?,
            order,
            row_ptr,
            cls,
            kind,
        })
    }

    /// Plans a checked padded batch: every place is computed, and the mask says which keys a query sees.
    pub(crate) fn dense(batch: &DenseBatch, operands: Kind, device: Device) -> Result<Self> {
        let kind = bucket_kind(operands, device);
        let (rows, width) = (batch.rows as i64, batch.width as i64);
        let bias = |sees: &[bool], queries: i64| {
            let sees = Tensor::f_from_slice(sees)?.f_view([rows, 1, queries, width])?;
            score_bias(&sees.f_to_device(device)?, kind)
        };
        let score_bias = match batch.mask {
            AttentionMask::None => None,
            AttentionMask::Keys(sees) => Some(bias(sees, 1)?),
            AttentionMask::Pairs(sees) => Some(bias(sees, width)?),
        };
        let positions = match batch.positions {
            Some(positions) => positions.to_vec(),
            None => (0..rows).flat_map(|_| 0..width).collect(),
        };
        let cls = |row: usize| row as i64 * width + batch.cls.map_or(0, |cls| cls[row]);
        let cls: Vec<i64> = (0..batch.rows).map(cls).collect();
        let on_device =
            |values: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(values)?.f_to_device(device)?) };
        let tokens = rows * width;
        Ok(Self {
            order: (0..batch.rows).collect(),
            row_ptr: (0..=rows).map(|row| row * width).collect(),
            tokens: on_device(batch.tokens)?,
            positions: on_device(&positions)?,
            cls_index: on_device(&cls)?,
            cls,
            buckets: vec![Bucket { start: 0, tokens, rows, width, padding: None, score_bias }],
            restore: None,
            kind,
        })
    }

    /// Per-row values in sorted order, put into the caller's.
    pub(crate) fn unsort<T: Clone + Default>(&self, sorted: &[T]) -> Vec<T> {
        let mut values = vec![T::default(); sorted.len()];
        for (&row, value) in self.order.iter().zip(sorted) {
            values[row] = value.clone();
        }
        values
    }
}

/// A processor attends fastest in f32, a GPU in what its products take.
fn bucket_kind(operands: Kind, device: Device) -> Kind {
    if kernels::are_for(device) { Kind::Float } else { operands }
}

fn invert(source: &[usize]) -> Vec<i64> {
    let mut places = vec![0; source.len()];
    for (place, &token) in source.iter().enumerate() {
        places[token] = place as i64;
    }
    places
}
