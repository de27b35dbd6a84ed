//! Bidirectional attention inside each row, computed bucket by bucket on the packed buffer.

use tch::Tensor;

use crate::error::Result;
use crate::layers::Taped;
use crate::plan::Bucket;

/// What backward needs from forward: one taped computation per bucket.
#[derive(Debug)]
pub(crate) struct AttentionTape(Vec<Taped>);

/// `qkv` [N, 3, H, h] (queries and keys already rotated) -> [N, H h]; `dropout` acts on the attention probabilities.
pub(crate) fn forward(qkv: &Tensor, buckets: &[Bucket], dropout: f64) -> Result<(Tensor, AttentionTape)> {
    let size = qkv.size();
    let (tokens, heads, width) = (size[0], size[2], size[3]);
    let context = Tensor::f_empty([tokens, heads, width], (qkv.kind(), qkv.device()))?;
    let mut tape = Vec::with_capacity(buckets.len());
    for bucket in buckets {
        let places = bucket.spread(&qkv.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, 3, heads, width])?;
        let part = |which: i64| places.f_select(2, which)?.f_transpose(1, 2);
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        let mask = bucket.padding.as_ref().map(|padding| &padding.keys);
        let (out, taped) = Taped::record(&[&query, &key, &value], |inputs| {
            Ok(Tensor::f_scaled_dot_product_attention(
                &inputs[0], &inputs[1], &inputs[2], mask, dropout, false, None, false,
            )?)
        })?;
        tape.push(taped);
        let out = out.f_transpose(1, 2)?.f_reshape([bucket.rows * bucket.width, heads, width])?;
        bucket.collect(&out, &context.f_narrow(0, bucket.start, bucket.tokens)?)?;
    }
    Ok((context.f_view([tokens, heads * width])?, AttentionTape(tape)))
}

/// Gradient of `qkv` [N, 3, H, h], given that of the context [N, H h].
pub(crate) fn backward(
    tape: AttentionTape,
    buckets: &[Bucket],
    grad: &Tensor,
    heads: i64,
) -> Result<Tensor> {
    let tokens = grad.size()[0];
    let width = grad.size()[1] / heads;
    let grad = grad.f_view([tokens, heads, width])?;
    let out = Tensor::f_empty([tokens, 3, heads, width], (grad.kind(), grad.device()))?;
    for (bucket, taped) in buckets.iter().zip(tape.0) {
        let places = bucket.spread_zero(&grad.f_narrow(0, bucket.start, bucket.tokens)?)?;
        let places = places.f_view([bucket.rows, bucket.width, heads, width])?.f_transpose(1, 2)?;
        let target = out.f_narrow(0, bucket.start, bucket.tokens)?;
        for (which, part) in taped.backward(&places)?.into_iter().enumerate() {
            let part = part.f_transpose(1, 2)?.f_reshape([bucket.rows * bucket.width, heads, width])?;
            bucket.collect(&part, &target.f_select(1, which as i64)?)?;
        }
    }
    Ok(out)
}

impl Bucket {
    /// Packed tokens -> padded places; padding repeats a real token, which the key mask hides.
    fn spread(&self, packed: &Tensor) -> Result<Tensor> {
        Ok(match &self.padding {
            None => packed.shallow_clone(),
            Some(padding) => packed.f_index_select(0, &padding.token_of_place)?,
        })
    }

    /// Packed tokens -> padded places; padding is zero, as nothing reads the context there.
    fn spread_zero(&self, packed: &Tensor) -> Result<Tensor> {
        let Some(padding) = &self.padding else { return Ok(packed.shallow_clone()) };
        let places = packed.f_index_select(0, &padding.token_of_place)?;
        let keys = padding.keys.f_view([self.rows * self.width, 1, 1])?;
        Ok(places.f_mul(&keys)?)
    }

    /// Padded places -> packed tokens.
    fn collect(&self, places: &Tensor, packed: &Tensor) -> Result<()> {
        let mut target = packed.shallow_clone();
        match &self.padding {
            None => target.f_copy_(places)?,
            Some(padding) => target.f_copy_(&places.f_index_select(0, &padding.place_of_token)?)?,
        }
        Ok(())
    }
}
