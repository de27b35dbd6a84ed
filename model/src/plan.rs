//! How a micro-batch is computed: rows sorted by length, and cut into buckets that attend together.

use tch::{Device, Kind, Tensor};

use crate::batch::Batch;
use crate::dense::{AttentionMask, DenseBatch};
use crate::error::Result;
use crate::gemm::small::best_kind;

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
    /// Rows that attend together; they cover all rows in order. None where a kernel takes the rows as they are.
    pub(crate) buckets: Vec<Bucket>,
    /// Sorted packed index of each of the caller's tokens; none if the rows came sorted.
    pub(crate) restore: Option<Tensor>,
    device: Device,
}

impl Plan {
    /// Positions that attention computes, its padding included.
    pub(crate) fn computed_positions(&self) -> i64 {
        if self.buckets.is_empty() {
            return self.row_ptr.last().copied().unwrap_or(0);
        }
        self.buckets.iter().map(|bucket| bucket.rows * bucket.width).sum()
    }

    /// [B] packed index of each sorted row's CLS.
    pub(crate) fn cls_index(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.cls)?.f_to_device(self.device)?)
    }

    /// Plans a validated batch of at least one row for `heads` attention heads.
    pub(crate) fn new(batch: &Batch, heads: i64, device: Device) -> Result<Self> {
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
        let pick = |values: &[i64]| -> Result<Tensor> {
            let values: Vec<i64> = source.iter().map(|&token| values[token]).collect();
            Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?)
        };
        let (tokens, positions) = (pick(batch.tokens)?, pick(batch.positions)?);
        let has_kernel = device == Device::Cpu && best_kind(Kind::Float).is_some();
        let buckets = if has_kernel { Vec::new() } else { buckets(&row_ptr, heads, device)? };
        let restore =
            (!sorted).then(|| Tensor::f_from_slice(&invert(&source))?.f_to_device(device)).transpose()?;
        Ok(Self { order, row_ptr, tokens, positions, cls, buckets, restore, device })
    }

    /// Plans a checked padded batch: every place is computed, and the mask says which keys a query sees.
    pub(crate) fn dense(batch: &DenseBatch, heads: i64, device: Device) -> Result<Self> {
        let (rows, width) = (batch.rows as i64, batch.width as i64);
        let score_bias = match batch.mask {
            AttentionMask::None => None,
            AttentionMask::Keys(sees) => Some(score_bias(sees, [rows, 1, width], heads, device)?),
            AttentionMask::Pairs(sees) => Some(score_bias(sees, [rows, width, width], heads, device)?),
        };
        let positions = match batch.positions {
            Some(positions) => positions.to_vec(),
            None => (0..rows).flat_map(|_| 0..width).collect(),
        };
        let cls = |row: usize| batch.cls.map_or(0, |cls| cls[row]);
        Ok(Self {
            order: (0..batch.rows).collect(),
            row_ptr: (0..=rows).map(|row| row * width).collect(),
            tokens: Tensor::f_from_slice(batch.tokens)?.f_to_device(device)?,
            positions: Tensor::f_from_slice(&positions)?.f_to_device(device)?,
            cls: (0..batch.rows).map(|row| row as i64 * width + cls(row)).collect(),
            buckets: vec![Bucket {
                start: 0,
                tokens: rows * width,
                rows,
                width,
                padding: None,
                score_bias,
                device,
            }],
            restore: None,
            device,
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

fn invert(source: &[usize]) -> Vec<i64> {
    let mut places = vec![0; source.len()];
    for (place, &token) in source.iter().enumerate() {
        places[token] = place as i64;
    }
    places
}

/// Consecutive rows whose attention is one dense computation of `rows` x `width` places.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// First packed token.
    pub(crate) start: i64,
    /// Packed tokens.
    pub(crate) tokens: i64,
    /// Rows.
    pub(crate) rows: i64,
    /// Length of the longest row.
    pub(crate) width: i64,
    /// Present if the rows differ in length.
    pub(crate) padding: Option<Padding>,
    /// [rows * heads, 1 or width, width] what is added to the scores of all or of each query: 0 where a key is seen, minus
    /// infinity where not; none if every key is.
    pub(crate) score_bias: Option<Tensor>,
    pub(crate) device: Device,
}

/// How a bucket's packed tokens lie in its padded places.
#[derive(Debug)]
pub(crate) struct Padding {
    /// [rows * width] token of each place within the bucket; padding repeats the row's first token.
    pub(crate) token_of_place: Tensor,
    /// [tokens] place of each token.
    pub(crate) place_of_token: Tensor,
    /// [rows * width, 1, 1] 1 for a token, 0 for padding.
    pub(crate) real: Tensor,
}

impl Bucket {
    /// From the row pointers of its rows and of the row behind.
    fn new(row_ptr: &[i64], heads: i64, device: Device) -> Result<Self> {
        let start = row_ptr[0];
        let rows = row_ptr.len() as i64 - 1;
        let tokens = row_ptr[row_ptr.len() - 1] - start;
        let width = row_ptr.windows(2).map(|row| row[1] - row[0]).max().unwrap_or(0);
        if tokens == rows * width {
            return Ok(Self { start, tokens, rows, width, padding: None, score_bias: None, device });
        }
        let padding = Some(Padding::new(row_ptr, width, device)?);
        let sees = row_ptr.windows(2).flat_map(|row| (0..width).map(move |key| key < row[1] - row[0]));
        let score_bias = Some(score_bias(&sees.collect::<Vec<_>>(), [rows, 1, width], heads, device)?);
        Ok(Self { start, tokens, rows, width, padding, score_bias, device })
    }
}

impl Padding {
    fn new(row_ptr: &[i64], width: i64, device: Device) -> Result<Self> {
        let (mut token_of_place, mut place_of_token, mut real) = (Vec::new(), Vec::new(), Vec::new());
        for row in row_ptr.windows(2) {
            let (first, len) = (row[0] - row_ptr[0], row[1] - row[0]);
            for column in 0..width {
                if column < len {
                    place_of_token.push(token_of_place.len() as i64);
                }
                token_of_place.push(if column < len { first + column } else { first });
                real.push(if column < len { 1f32 } else { 0.0 });
            }
        }
        let rows = row_ptr.len() as i64 - 1;
        Ok(Self {
            token_of_place: Tensor::f_from_slice(&token_of_place)?.f_to_device(device)?,
            place_of_token: Tensor::f_from_slice(&place_of_token)?.f_to_device(device)?,
            real: Tensor::f_from_slice(&real)?.f_to_device(device)?.f_view([rows * width, 1, 1])?,
        })
    }
}

/// Which keys are seen, [rows, 1 or width, width] row-major, as what is added to the scores of every head.
fn score_bias(sees: &[bool], [rows, queries, width]: [i64; 3], heads: i64, device: Device) -> Result<Tensor> {
    let bias: Vec<f32> = sees.iter().map(|&seen| if seen { 0.0 } else { f32::NEG_INFINITY }).collect();
    let bias = Tensor::f_from_slice(&bias)?.f_to_device(device)?.f_view([rows, 1, queries, width])?;
    Ok(bias.f_expand([rows, heads, queries, width], false)?.f_reshape([rows * heads, queries, width])?)
}

/// The buckets of sorted rows.
pub(crate) fn buckets(row_ptr: &[i64], heads: i64, device: Device) -> Result<Vec<Bucket>> {
    cut(row_ptr, heads)
        .into_iter()
        .map(|rows| Bucket::new(&row_ptr[rows.start..=rows.end], heads, device))
        .collect()
}

/// What one more bucket costs, in attention scores computed for one head.
const BUCKET_COST: i64 = 40_000;

/// Cuts sorted rows (at least one) into buckets: of all ways that keep rows of equal length together, the one with the least scores
/// computed plus [`BUCKET_COST`] for each bucket.
fn cut(row_ptr: &[i64], heads: i64) -> Vec<std::ops::Range<usize>> {
    let lengths: Vec<i64> = row_ptr.windows(2).map(|row| row[1] - row[0]).collect();
    let mut ends: Vec<usize> = (1..lengths.len()).filter(|&row| lengths[row - 1] != lengths[row]).collect();
    ends.push(lengths.len());
    let begin = |group: usize| if group == 0 { 0 } else { ends[group - 1] };
    // best[g] = (least cost of the groups before g, first group of the last bucket)
    let mut best = vec![(0i64, 0usize)];
    for last in 0..ends.len() {
        let width = lengths[ends[last] - 1];
        let candidate = (0..=last)
            .map(|first| {
                let rows = (ends[last] - begin(first)) as i64;
                (best[first].0 + BUCKET_COST + rows * heads * width * width, first)
            })
            .min()
            .unwrap_or((0, last));
        best.push(candidate);
    }
    let mut buckets = Vec::new();
    let mut end = ends.len();
    while end > 0 {
        let first = best[end].1;
        buckets.push(begin(first)..ends[end - 1]);
        end = first;
    }
    buckets.reverse();
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(lengths: &[i64]) -> Vec<i64> {
        let mut pointers = vec![0];
        for length in lengths {
            pointers.push(pointers[pointers.len() - 1] + length);
        }
        pointers
    }

    #[test]
    fn close_lengths_share_a_bucket_and_distant_ones_do_not() {
        assert_eq!(cut(&pointers(&[5, 5, 6, 7]), 4), vec![0..4]);
        let mut lengths = vec![10; 50];
        lengths.extend([200; 50]);
        assert_eq!(cut(&pointers(&lengths), 4), vec![0..50, 50..100]);
    }

    #[test]
    fn buckets_cover_all_rows_in_order() {
        let lengths: Vec<i64> = (1..300).map(|row| 1 + row * row / 500).collect();
        let buckets = cut(&pointers(&lengths), 8);
        assert_eq!((buckets[0].start, buckets[buckets.len() - 1].end), (0, lengths.len()));
        assert!(buckets.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(buckets.len() > 1);
    }
}
