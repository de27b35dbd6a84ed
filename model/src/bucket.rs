//! Buckets: consecutive rows of similar length whose attention is one dense computation.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::upload::{Sent, Slot, Upload};

/// Rows of a plan, as `rows` x `width` places.
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
    /// [rows, 1, 1 or width, width] what is added to the scores of all or of each query: 0 where a key is seen, minus infinity where
    /// not; none if every key is.
    pub(crate) score_bias: Option<Tensor>,
}

/// How a bucket's packed tokens lie in its padded places.
#[derive(Debug)]
pub(crate) struct Padding {
    /// [rows * width] token of each place within the bucket; padding repeats the row's first token.
    token_of_place: Tensor,
    /// [tokens] place of each token.
    place_of_token: Tensor,
    /// [rows * width, 1, 1] 1 for a token, 0 for padding.
    real: Tensor,
}

impl Bucket {
    /// Packed tokens -> padded places; padding repeats a real token, which the score bias hides.
    pub(crate) fn spread(&self, packed: &Tensor) -> Result<Tensor> {
        Ok(match &self.padding {
            None => packed.shallow_clone(),
            Some(padding) => packed.f_index_select(0, &padding.token_of_place)?,
        })
    }

    /// Packed tokens -> padded places; padding is zero, as nothing reads the context there.
    pub(crate) fn spread_zero(&self, packed: &Tensor) -> Result<Tensor> {
        let Some(padding) = &self.padding else { return Ok(packed.shallow_clone()) };
        Ok(packed.f_index_select(0, &padding.token_of_place)?.f_mul_(&padding.real)?)
    }

    /// Padded places [rows, width, ...] -> packed tokens [tokens, ...].
    pub(crate) fn collect(&self, places: &Tensor, packed: &Tensor) -> Result<()> {
        let mut size = packed.size();
        match &self.padding {
            None => {
                size.splice(0..1, [self.rows, self.width]);
                packed.f_view(size.as_slice())?.f_copy_(places)?;
            }
            Some(padding) => {
                size[0] = self.rows * self.width;
                let tokens = places.f_reshape(size)?.f_index_select(0, &padding.place_of_token)?;
                packed.shallow_clone().f_copy_(&tokens)?;
            }
        }
        Ok(())
    }
}

/// A bucket whose arrays are on their way.
#[derive(Debug)]
pub(crate) struct Pending {
    bucket: Bucket,
    /// Lengths of the rows, token of each place, place of each token; none without padding.
    arrays: Option<[Slot; 3]>,
}

impl Pending {
    /// From the row pointers of its rows and of the row behind.
    fn new(row_ptr: &[i64], upload: &mut Upload) -> Self {
        let start = row_ptr[0];
        let rows = row_ptr.len() as i64 - 1;
        let tokens = row_ptr[row_ptr.len() - 1] - start;
        let lengths = || row_ptr.windows(2).map(|row| row[1] - row[0]);
        let width = lengths().max().unwrap_or(0);
        let bucket = Bucket { start, tokens, rows, width, padding: None, score_bias: None };
        let arrays = (tokens < rows * width).then(|| {
            let firsts = row_ptr.iter().map(|first| first - start);
            let of_row = |(first, len): (i64, i64)| {
                (0..width).map(move |column| first + if column < len { column } else { 0 })
            };
            let place = |(row, len): (usize, i64)| (0..len).map(move |column| row as i64 * width + column);
            [
                upload.integers(lengths()),
                upload.integers(firsts.zip(lengths()).flat_map(of_row)),
                upload.integers(lengths().enumerate().flat_map(place)),
            ]
        });
        Self { bucket, arrays }
    }

    /// With what has arrived, for scores of type `kind`.
    pub(crate) fn arrive(self, sent: &Sent, kind: Kind) -> Result<Bucket> {
        let mut bucket = self.bucket;
        let Some([lengths, token_of_place, place_of_token]) = self.arrays else { return Ok(bucket) };
        let (rows, width) = (bucket.rows, bucket.width);
        let lengths = sent.integers(&lengths)?.f_unsqueeze(1)?;
        let columns = Tensor::f_arange(width, (Kind::Int64, lengths.device()))?;
        let real = columns.f_lt_tensor(&lengths)?;
        bucket.padding = Some(Padding {
            token_of_place: sent.integers(&token_of_place)?,
            place_of_token: sent.integers(&place_of_token)?,
            real: real.f_to_kind(kind)?.f_view([rows * width, 1, 1])?,
        });
        bucket.score_bias = Some(score_bias(&real.f_view([rows, 1, 1, width])?, kind)?);
        Ok(bucket)
    }
}

/// What is added to scores, given which keys are seen. Its rows lie as far apart as libtorch's fused attention wants them, which would
/// copy it in every layer otherwise.
pub(crate) fn score_bias(sees: &Tensor, kind: Kind) -> Result<Tensor> {
    const ALIGNMENT: u64 = 8;
    let (mut size, keys) = (sees.size(), sees.size()[sees.dim() - 1]);
    size[sees.dim() - 1] = keys.cast_unsigned().next_multiple_of(ALIGNMENT).cast_signed();
    let mut bias = Tensor::f_zeros(size, (kind, sees.device()))?.f_narrow(-1, 0, keys)?;
    Ok(bias.f_masked_fill_(&sees.f_logical_not()?, f64::NEG_INFINITY)?)
}

/// The buckets of sorted rows (at least one); what they consist of goes into `upload`.
pub(crate) fn buckets(row_ptr: &[i64], heads: i64, device: Device, upload: &mut Upload) -> Vec<Pending> {
    let cost = if device.is_cuda() { GPU_BUCKET_COST } else { BUCKET_COST };
    cut(row_ptr, heads, cost)
        .into_iter()
        .map(|rows| Pending::new(&row_ptr[rows.start..=rows.end], upload))
        .collect()
}

/// What one more bucket costs, in attention scores computed for one head.
const BUCKET_COST: i64 = 40_000;

/// The same on a GPU, by arithmetic: forward and backward start about 30 kernels, in whose time it computes so many scores.
const GPU_BUCKET_COST: i64 = 20_000_000;

/// Cuts sorted rows (at least one) into buckets: of all ways that keep rows of equal length together, the one with the least scores
/// computed plus `cost` for each bucket.
fn cut(row_ptr: &[i64], heads: i64, cost: i64) -> Vec<Range<usize>> {
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
                (best[first].0 + cost + rows * heads * width * width, first)
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
        assert_eq!(cut(&pointers(&[5, 5, 6, 7]), 4, BUCKET_COST), vec![0..4]);
        let mut lengths = vec![10; 50];
        lengths.extend([200; 50]);
        assert_eq!(cut(&pointers(&lengths), 4, BUCKET_COST), vec![0..50, 50..100]);
        assert_eq!(cut(&pointers(&lengths), 4, GPU_BUCKET_COST), vec![0..100]);
    }

    #[test]
    fn buckets_cover_all_rows_in_order() {
        let lengths: Vec<i64> = (1..300).map(|row| 1 + row * row / 500).collect();
        let buckets = cut(&pointers(&lengths), 8, BUCKET_COST);
        assert_eq!((buckets[0].start, buckets[buckets.len() - 1].end), (0, lengths.len()));
        assert!(buckets.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(buckets.len() > 1);
    }
}
