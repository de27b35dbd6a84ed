//! Bidirectional attention inside each row of packed tokens, queries and keys turned by their positions.
//!
//! Elsewhere than on the host, and with masks of the caller's, rows of similar length are computed together, bucket by bucket, by
//! libtorch's fused attention.

use tch::{Kind, Tensor};

use super::dropout;
use crate::bucket::Bucket;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gemm::small::best_kind;
use crate::kernels;
use crate::kernels::attention::{Angles, Spans};
use crate::layers::Taped;
use crate::plan::Plan;
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
    Buckets(Vec<Taped>),
}

impl Attention<'_> {
    /// `qkv` [N, 3, H, h], on the host f32, which may be changed -> context [N, H h].
    pub(crate) fn forward(self, qkv: Tensor) -> Result<(Tensor, Tape)> {
        if self.plan.buckets.is_empty() {
            let kind = best_kind(self.kind);
            let (context, tape) = kernels::attention::forward(&qkv, self.spans(), kind)?;
            return Ok((context.f_to_kind(self.kind)?, Tape::Kernel(tape)));
        }
        if let Some(turns) = self.turns {
            turns.apply_(&qkv.f_narrow(1, 0, 2)?)?;
        }
        let qkv = qkv.f_to_kind(self.plan.kind)?;
        let (context, tape) = by_buckets(&qkv, &self.plan.buckets, self.dropout)?;
        Ok((context.f_to_kind(self.kind)?, Tape::Buckets(tape)))
    }

    /// Gradient of `qkv` [N, 3 H h] of type `kind`, given that of the context [N, H h], on the host f32.
    pub(crate) fn backward(self, tape: Tape, grad: &Tensor, heads: i64) -> Result<Tensor> {
        let tape = match tape {
            Tape::Kernel(tape) => {
                let out = kernels::attention::backward(&tape, self.spans(), grad)?;
                return Ok(out.f_to_kind(self.kind)?);
            }
            Tape::Buckets(tape) => tape,
        };
        let grad = grad.f_to_kind(self.plan.kind)?;
        let qkv = buckets_backward(tape, &self.plan.buckets, &grad, heads)?;
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

/// `qkv` [N, 3, H, h] (queries and keys already turned) -> [N, H h] of the same type.
fn by_buckets(qkv: &Tensor, buckets: &[Bucket], dropout: Dropout) -> Result<(Tensor, Vec<Taped>)> {
    let size = qkv.size();
    let (tokens, heads, width) = (size[0], size[2], size[3]);
    let context = Tensor::f_empty([tokens, heads, width], (qkv.kind(), qkv.device()))?;
    let mut tape = Vec::with_capacity(buckets.len());
    for (index, bucket) in buckets.iter().enumerate() {
        let places = bucket.spread(&qkv.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, 3, heads, width])?;
        let (out, taped) = fused(&places, bucket, dropout.site(index as u64))?;
        tape.push(taped);
        bucket.collect(&out.f_transpose(1, 2)?, &context.f_narrow(0, bucket.start, bucket.tokens)?)?;
    }
    Ok((context.f_view([tokens, heads * width])?, tape))
}

/// Gradient of `qkv` [N, 3, H, h], given that of the context [N, H h] of the same type.
fn buckets_backward(tape: Vec<Taped>, buckets: &[Bucket], grad: &Tensor, heads: i64) -> Result<Tensor> {
    let tokens = grad.size()[0];
    let width = grad.size()[1] / heads;
    let grad = grad.f_view([tokens, heads, width])?;
    let out = Tensor::f_empty([tokens, 3, heads, width], (grad.kind(), grad.device()))?;
    for (bucket, taped) in buckets.iter().zip(tape) {
        let places = bucket.spread_zero(&grad.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, heads, width])?.f_transpose(1, 2)?;
        let target = out.f_narrow(0, bucket.start, bucket.tokens)?;
        for (which, part) in taped.backward(&places)?.into_iter().enumerate() {
            bucket.collect(&part.f_transpose(1, 2)?, &target.f_select(1, which as i64)?)?;
        }
    }
    Ok(out)
}

/// [rows, width, 3, H, h] -> [rows, H, width, h].
fn fused(places: &Tensor, bucket: &Bucket, dropout: Dropout) -> Result<(Tensor, Taped)> {
    let part = |which: i64| places.f_select(2, which)?.f_transpose(1, 2);
    let (query, key, value) = (part(0)?, part(1)?, part(2)?);
    if !dropout.is_off() {
        dropout::begin(dropout, places.device());
    }
    Taped::record(&[&query, &key, &value], |inputs| {
        let [query, key, value] = [&inputs[0], &inputs[1], &inputs[2]];
        let (bias, p) = (bucket.score_bias.as_ref(), dropout.p());
        Ok(Tensor::f_scaled_dot_product_attention(query, key, value, bias, p, false, None, false)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;
    use crate::testing::{as_elsewhere, close, wave};
    use tch::Device;

    const HEADS: i64 = 3;

    /// Rows of these lengths, by the kernel or as elsewhere: context and gradient.
    fn run(lengths: &[i64], kernel: bool, dropout: Dropout, kind: Kind) -> [Tensor; 2] {
        let compute = || attend(lengths, dropout, kind);
        if kernel { compute() } else { as_elsewhere(compute) }
    }

    fn attend(lengths: &[i64], dropout: Dropout, kind: Kind) -> [Tensor; 2] {
        let width = 8;
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
        let _guard = tch::no_grad_guard();
        let plan = Plan::new(&batch, HEADS, kind, Device::Cpu).unwrap();
        let angle = wave(&[tokens, 1, 1, 3], 0.5);
        let turns = Turns { cos: angle.cos(), sin: angle.sin() };
        let attention = Attention { plan: &plan, turns: Some(&turns), dropout, kind };
        let (context, tape) = attention.forward(wave(&[tokens, 3, HEADS, width], 0.1) * 2.0).unwrap();
        let grad = wave(&[tokens, HEADS * width], 0.4);
        let grad = attention.backward(tape, &grad, HEADS).unwrap();
        [context, grad]
    }

    #[test]
    fn kernel_and_buckets_agree() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let bound = if kind == Kind::Float { 1e-5 } else { 3e-2 };
            for lengths in [&[1, 2, 2, 7, 40, 300][..], &[5, 5, 5], &[1]] {
                let [kernel, torch] = [true, false].map(|kernel| run(lengths, kernel, Dropout::OFF, kind));
                close(&torch[0], &kernel[0], bound, "context");
                close(&torch[1], &kernel[1], bound, "gradient");
            }
        }
    }

    /// Masks of kernel and buckets differ, but not what they are in the mean.
    #[test]
    fn dropout_repeats_by_its_seed_and_is_without_bias_either_way() {
        let lengths = [3, 9, 9];
        for kernel in [true, false] {
            let run = |seed| run(&lengths, kernel, Dropout::new(0.3, seed), Kind::Float);
            let [first, again, other] = [1, 1, 2].map(run);
            assert!(first == again && first[0] != other[0]);
            let mut sums = run(0);
            (1..500).for_each(|seed| {
                for (sum, value) in sums.iter_mut().zip(run(seed)) {
                    let _ = sum.f_add_(&value).unwrap();
                }
            });
            let expected = self::run(&lengths, kernel, Dropout::OFF, Kind::Float);
            close(&(&sums[0] / 500.0), &expected[0], 0.1, "context");
            // The softmax's gradient is no linear function of the mask, but that by the values is.
            let values = |grad: &Tensor| grad.view([-1, 3, HEADS * 8]).select(1, 2);
            close(&(values(&sums[1]) / 500.0), &values(&expected[1]), 0.1, "gradient");
        }
    }
}
