//! Bidirectional attention inside each row of packed tokens, queries and keys turned by their positions.
//!
//! Elsewhere than on the host, and with masks of the caller's, rows of similar length are computed together, bucket by bucket. Without
//! dropout libtorch's fused attention is used there; its dropout draws from a process-wide generator, so with dropout the
//! probabilities are computed explicitly.

use tch::{Kind, Tensor};

use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm::small::best_kind;
use crate::kernels;
use crate::kernels::attention::{Angles, Spans};
use crate::layers::Taped;
use crate::plan::{Bucket, Plan};
use crate::turns::Turns;

/// How attention is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) plan: &'a Plan,
    /// None if positions are in the embedding.
    pub(crate) turns: Option<&'a Turns>,
    pub(crate) dropout: Dropout,
    /// Type of the context.
    pub(crate) kind: Kind,
}

/// What backward needs from forward.
#[derive(Debug)]
pub(crate) enum Tape {
    Kernel(kernels::attention::Tape),
    Buckets(Vec<BucketTape>),
}

impl Attention<'_> {
    /// `qkv` [N, 3, H, h] f32, which may be changed -> context [N, H h].
    pub(crate) fn forward(self, qkv: Tensor) -> Result<(Tensor, Tape)> {
        if self.plan.buckets.is_empty() {
            let kind = best_kind(self.kind).unwrap_or(Kind::Float);
            let (context, tape) = kernels::attention::forward(&qkv, self.spans(), kind)?;
            return Ok((context.f_to_kind(self.kind)?, Tape::Kernel(tape)));
        }
        if let Some(turns) = self.turns {
            turns.apply_(&qkv.f_narrow(1, 0, 2)?)?;
        }
        let (context, tape) = by_buckets(&qkv, &self.plan.buckets, self.dropout)?;
        Ok((context.f_to_kind(self.kind)?, Tape::Buckets(tape)))
    }

    /// Gradient of `qkv` [N, 3 H h] of type `kind`, given that of the context [N, H h] (f32).
    pub(crate) fn backward(self, tape: Tape, grad: &Tensor, heads: i64) -> Result<Tensor> {
        let tape = match tape {
            Tape::Kernel(tape) => {
                let out = kernels::attention::backward(&tape, self.spans(), grad)?;
                return Ok(out.f_to_kind(self.kind)?);
            }
            Tape::Buckets(tape) => tape,
        };
        let qkv = buckets_backward(tape, &self.plan.buckets, grad, heads)?;
        if let Some(turns) = self.turns {
            turns.undo_(&qkv.f_narrow(1, 0, 2)?)?;
        }
        Ok(qkv.f_view([grad.size()[0], -1])?.f_to_kind(self.kind)?)
    }

    fn spans(&self) -> Spans<'_> {
        let angles = self.turns.map(|turns| Angles::new(&turns.cos, &turns.sin));
        Spans { row_ptr: &self.plan.row_ptr, angles, dropout: self.dropout }
    }
}

#[derive(Debug)]
pub(crate) enum BucketTape {
    Fused(Taped),
    Explicit(Explicit),
}

/// Attention with dropout on its probabilities; all [rows * heads, width, ...].
#[derive(Debug)]
pub(crate) struct Explicit {
    /// [3, rows * heads, width, h].
    parts: Tensor,
    probabilities: Tensor,
    mask: Tensor,
    dropped: Tensor,
}

/// `qkv` [N, 3, H, h] (queries and keys already turned) -> [N, H h].
fn by_buckets(qkv: &Tensor, buckets: &[Bucket], dropout: Dropout) -> Result<(Tensor, Vec<BucketTape>)> {
    let size = qkv.size();
    let (tokens, heads, width) = (size[0], size[2], size[3]);
    let context = Tensor::f_empty([tokens, heads, width], (qkv.kind(), qkv.device()))?;
    let mut tape = Vec::with_capacity(buckets.len());
    for bucket in buckets {
        let places = bucket.spread(&qkv.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, 3, heads, width])?;
        let mask = dropout.mask_of_rows(&bucket.queries(heads, tokens)?, bucket.width)?;
        let (out, bucket_tape) = match mask {
            None => fused(&places, bucket)?,
            Some(mask) => Explicit::forward(&places, bucket, mask)?,
        };
        tape.push(bucket_tape);
        bucket.collect(&out.f_transpose(1, 2)?, &context.f_narrow(0, bucket.start, bucket.tokens)?)?;
    }
    Ok((context.f_view([tokens, heads * width])?, tape))
}

/// Gradient of `qkv` [N, 3, H, h], given that of the context [N, H h].
fn buckets_backward(tape: Vec<BucketTape>, buckets: &[Bucket], grad: &Tensor, heads: i64) -> Result<Tensor> {
    let tokens = grad.size()[0];
    let width = grad.size()[1] / heads;
    let grad = grad.f_view([tokens, heads, width])?;
    let out = Tensor::f_empty([tokens, 3, heads, width], (grad.kind(), grad.device()))?;
    for (bucket, tape) in buckets.iter().zip(tape) {
        let places = bucket.spread_zero(&grad.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, heads, width])?.f_transpose(1, 2)?;
        let target = out.f_narrow(0, bucket.start, bucket.tokens)?;
        match tape {
            BucketTape::Fused(taped) => {
                for (which, part) in taped.backward(&places)?.into_iter().enumerate() {
                    bucket.collect(&part.f_transpose(1, 2)?, &target.f_select(1, which as i64)?)?;
                }
            }
            BucketTape::Explicit(explicit) => {
                let parts = explicit.backward(&places)?;
                let parts = parts.f_view([3, bucket.rows, heads, bucket.width, width])?;
                bucket.collect(&parts.f_permute([1, 3, 0, 2, 4])?, &target)?;
            }
        }
    }
    Ok(out)
}

/// [rows, width, 3, H, h] -> [rows, H, width, h].
fn fused(places: &Tensor, bucket: &Bucket) -> Result<(Tensor, BucketTape)> {
    let part = |which: i64| places.f_select(2, which)?.f_transpose(1, 2);
    let (query, key, value) = (part(0)?, part(1)?, part(2)?);
    let heads = query.size()[1];
    let bias = bucket
        .score_bias
        .as_ref()
        .map(|bias| bias.f_view([bucket.rows, heads, -1, bucket.width]))
        .transpose()?;
    let (out, taped) = Taped::record(&[&query, &key, &value], |inputs| {
        let [query, key, value] = [&inputs[0], &inputs[1], &inputs[2]];
        let bias = bias.as_ref();
        Ok(Tensor::f_scaled_dot_product_attention(query, key, value, bias, 0.0, false, None, false)?)
    })?;
    Ok((out, BucketTape::Fused(taped)))
}

impl Explicit {
    /// [rows, width, 3, H, h] -> [rows, H, width, h].
    fn forward(places: &Tensor, bucket: &Bucket, mask: Tensor) -> Result<(Tensor, BucketTape)> {
        let size = places.size();
        let (rows, width, heads, head) = (size[0], size[1], size[3], size[4]);
        let parts =
            places.f_permute([2, 0, 3, 1, 4])?.f_contiguous()?.f_view([3, rows * heads, width, head])?;
        let (query, key, value) = (parts.f_select(0, 0)?, parts.f_select(0, 1)?, parts.f_select(0, 2)?);
        let (bias, beta) = match &bucket.score_bias {
            Some(bias) => (bias.shallow_clone(), 1.0),
            None => (Tensor::f_zeros([1, 1, 1], (places.kind(), places.device()))?, 0.0),
        };
        let scores = bias.f_baddbmm(&query, &key.f_transpose(1, 2)?, beta, scale(&parts))?;
        let probabilities = scores.f_softmax(-1, Kind::Float)?;
        let mask = mask.f_view_as(&probabilities)?;
        let dropped = probabilities.f_mul(&mask)?;
        let out = dropped.f_bmm(&value)?.f_view([rows, heads, width, head])?;
        Ok((out, BucketTape::Explicit(Self { parts, probabilities, mask, dropped })))
    }

    /// Gradient [3, rows * heads, width, h], given that of the output [rows, H, width, h].
    fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        let part = |which: i64| self.parts.f_select(0, which);
        let out = self.parts.f_empty_like()?;
        let grad = grad.f_reshape(part(0)?.size())?;
        let _ = self.dropped.f_transpose(1, 2)?.f_bmm_out(&out.f_select(0, 2)?, &grad)?;
        let probabilities = grad.f_bmm(&part(2)?.f_transpose(1, 2)?)?.f_mul_(&self.mask)?;
        let mut scores =
            Tensor::f_internal_softmax_backward_data(&probabilities, &self.probabilities, -1, Kind::Float)?;
        let scores = scores.f_mul_scalar_(scale(&self.parts))?;
        let _ = scores.f_bmm_out(&out.f_select(0, 0)?, &part(1)?)?;
        let _ = scores.f_transpose(1, 2)?.f_bmm_out(&out.f_select(0, 1)?, &part(0)?)?;
        Ok(out)
    }
}

/// 1 / sqrt(h) of [..., h].
fn scale(parts: &Tensor) -> f64 {
    let size = parts.size();
    (size[size.len() - 1] as f64).sqrt().recip()
}

impl Bucket {
    /// Numbers of the queries [rows * heads * width] among all of all heads, by which their dropout is drawn.
    fn queries(&self, heads: i64, tokens: i64) -> Result<Tensor> {
        let options = (Kind::Int64, self.device);
        let within = Tensor::f_arange(self.rows * self.width, options)?;
        let within = match &self.padding {
            None => within,
            Some(padding) => padding.token_of_place.shallow_clone(),
        };
        let places = within.f_add_scalar(self.start)?.f_view([self.rows, 1, self.width])?;
        let heads = Tensor::f_arange(heads, options)?.f_mul_scalar(tokens)?.f_view([1, -1, 1])?;
        Ok(places.f_add(&heads)?.f_view([-1])?)
    }

    /// Packed tokens -> padded places; padding repeats a real token, which the score bias hides.
    fn spread(&self, packed: &Tensor) -> Result<Tensor> {
        Ok(match &self.padding {
            None => packed.shallow_clone(),
            Some(padding) => packed.f_index_select(0, &padding.token_of_place)?,
        })
    }

    /// Packed tokens -> padded places; padding is zero, as nothing reads the context there.
    fn spread_zero(&self, packed: &Tensor) -> Result<Tensor> {
        let Some(padding) = &self.padding else { return Ok(packed.shallow_clone()) };
        Ok(packed.f_index_select(0, &padding.token_of_place)?.f_mul_(&padding.real)?)
    }

    /// Padded places [rows, width, ...] -> packed tokens [tokens, ...].
    fn collect(&self, places: &Tensor, packed: &Tensor) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;
    use crate::plan::buckets;
    use crate::testing::{close, wave};
    use tch::Device;

    /// Rows of these lengths, all attention of one kind: context and gradient.
    fn run(lengths: &[i64], by_bucket: bool, dropout: Dropout, kind: Kind) -> [Tensor; 2] {
        let (heads, width) = (3, 8);
        let mut row_ptr = vec![0];
        lengths.iter().for_each(|length| row_ptr.push(row_ptr[row_ptr.len() - 1] + length));
        let tokens = row_ptr[lengths.len()];
        let ones = vec![1; tokens as usize];
        let batch = Batch {
            row_ptr: &row_ptr,
            tokens: &ones,
            positions: &ones,
            cls: &vec![0; lengths.len()],
            tgt_ptr: &vec![0; tokens as usize + 1],
            tgt_ids: &[],
            tgt_counts: &[],
        };
        let mut plan = Plan::new(&batch, heads, Device::Cpu).unwrap();
        plan.buckets =
            if by_bucket { buckets(&plan.row_ptr, heads, Device::Cpu).unwrap() } else { Vec::new() };
        let angle = wave(&[tokens, 1, 1, 3], 0.5);
        let turns = Turns { cos: angle.cos(), sin: angle.sin() };
        let attention = Attention { plan: &plan, turns: Some(&turns), dropout, kind };
        let (context, tape) = attention.forward(wave(&[tokens, 3, heads, width], 0.1) * 2.0).unwrap();
        let grad = wave(&[tokens, heads * width], 0.4);
        let grad = attention.backward(tape, &grad, heads).unwrap();
        [context, grad]
    }

    #[test]
    fn kernel_and_buckets_agree_with_the_same_dropout() {
        let _guard = tch::no_grad_guard();
        for kind in [Kind::Float, Kind::BFloat16] {
            let bound = if kind == Kind::Float { 1e-5 } else { 3e-2 };
            for dropout in [Dropout::OFF, Dropout::new(0.4, 9)] {
                for lengths in [&[1, 2, 2, 7, 40, 300][..], &[5, 5, 5], &[1]] {
                    let (kernel, torch) =
                        (run(lengths, false, dropout, kind), run(lengths, true, dropout, kind));
                    close(&kernel[0], &torch[0], bound, "context");
                    close(&kernel[1], &torch[1], bound, "gradient");
                }
            }
        }
    }
}
