//! The parts of a causal transformer. Sums, norms and activations are f32; operands of products have the judge's precision.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::gemm;
use crate::ops::activation::Curve;

/// Normalisation over the features.
#[derive(Debug)]
pub(super) enum Norm {
    /// To mean 0 and variance 1.
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
    /// To a mean square of 1.
    Rms { weight: Tensor, eps: f64 },
}

impl Norm {
    /// [n, d] -> [n, d]
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer { weight, bias, eps } => {
                Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), *eps, false)?)
            }
            Self::Rms { weight, eps } => {
                let mean = x.f_square()?.f_mean_dim([-1].as_slice(), true, Kind::Float)?;
                Ok(x.f_mul(&mean.f_add_scalar(*eps)?.f_rsqrt_()?)?.f_mul_(weight)?)
            }
        }
    }
}

/// `y = x W^T + b`.
#[derive(Debug)]
pub(super) struct Map {
    /// [out, in] of the judge's precision.
    pub(super) weight: Tensor,
    /// [out] f32.
    pub(super) bias: Option<Tensor>,
}

impl Map {
    /// [n, in] -> [n, out]
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = gemm::linear(&x.f_to_kind(self.weight.kind())?, &self.weight)?;
        if let Some(bias) = &self.bias {
            let _ = out.f_add_(bias)?;
        }
        Ok(out)
    }
}

/// The second half of a block.
#[derive(Debug)]
pub(super) enum FeedForward {
    Plain { widen: Map, curve: Curve, narrow: Map },
    Gated { gate: Map, widen: Map, narrow: Map },
}

impl FeedForward {
    /// [n, d] -> [n, d]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { widen, curve, narrow } => {
                let wide = widen.forward(x)?;
                narrow.forward(&match curve {
                    Curve::Relu => wide.f_relu()?,
                    Curve::ErfGelu => wide.f_gelu("none")?,
                    Curve::TanhGelu => wide.f_gelu("tanh")?,
                })
            }
            Self::Gated { gate, widen, narrow } => {
                narrow.forward(&gate.forward(x)?.f_silu_()?.f_mul_(&widen.forward(x)?)?)
            }
        }
    }
}

/// Attention of every token to itself and those before it.
#[derive(Debug)]
pub(super) struct Attention {
    /// Queries of all heads, then keys and then values of the `shared` heads.
    pub(super) qkv: Map,
    pub(super) project: Map,
    pub(super) heads: i64,
    /// Heads of keys and values, each for equally many of the queries' that follow each other.
    pub(super) shared: i64,
    /// What scores are multiplied with.
    pub(super) scale: f64,
}

impl Attention {
    /// [B L, d] -> [B L, d]
    fn forward(&self, x: &Tensor, [rows, length]: [i64; 2], angles: Option<&Angles>) -> Result<Tensor> {
        let all = self.qkv.forward(x)?;
        let width = all.size()[1] / (self.heads + 2 * self.shared);
        let all = all.f_view([rows, length, self.heads + 2 * self.shared, width])?.f_transpose(1, 2)?;
        let part = |start, heads| all.f_narrow(1, start, heads);
        let (query, key) = (part(0, self.heads)?, part(self.heads, self.shared)?);
        let value = part(self.heads + self.shared, self.shared)?;
        let (query, key) = match angles {
            Some(angles) => (angles.turn(&query)?, angles.turn(&key)?),
            None => (query, key),
        };
        let each = |tensor: Tensor| match self.heads / self.shared {
            1 => Ok(tensor),
            times => tensor.f_repeat_interleave_self_int(times, 1, None),
        };
        // Only a GPU is faster with bf16 here.
        let kind = if x.device().is_cuda() { self.qkv.weight.kind() } else { Kind::Float };
        let [query, key, value] = [query, each(key)?, each(value)?].map(|tensor| tensor.f_to_kind(kind));
        let context = Tensor::f_scaled_dot_product_attention(
            &query?,
            &key?,
            &value?,
            None::<&Tensor>,
            0.0,
            true,
            self.scale,
            false,
        )?;
        self.project.forward(&context.f_transpose(1, 2)?.f_reshape([rows * length, -1])?)
    }
}

/// Rotation of queries and keys by their positions.
#[derive(Debug)]
pub(super) struct Angles {
    /// [L, h / 2]
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Of the positions 0 .. `length`, with these turns from one to the next.
    pub(super) fn new(frequencies: &Tensor, length: i64) -> Result<Self> {
        let positions = Tensor::f_arange(length, (Kind::Double, frequencies.device()))?;
        let angles = positions.f_outer(frequencies)?;
        let single = |tensor: Tensor| tensor.f_to_kind(Kind::Float);
        Ok(Self { cos: single(angles.f_cos()?)?, sin: single(angles.f_sin()?)? })
    }

    /// [B, H, L, h], whose pairs are feature i and i + h / 2.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let halves = x.f_chunk(2, -1)?;
        let [first, second] = [&halves[0], &halves[1]];
        let turned = [
            first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?,
            second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?,
        ];
        Ok(Tensor::f_cat(&turned, -1)?)
    }
}

/// One layer.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) norm1: Norm,
    pub(super) attention: Attention,
    pub(super) norm2: Norm,
    pub(super) feed_forward: FeedForward,
}

impl Block {
    /// [B L, d] -> [B L, d]
    pub(super) fn forward(&self, x: Tensor, size: [i64; 2], angles: Option<&Angles>) -> Result<Tensor> {
        let mut x = x;
        let _ = x.f_add_(&self.attention.forward(&self.norm1.forward(&x)?, size, angles)?)?;
        let _ = x.f_add_(&self.feed_forward.forward(&self.norm2.forward(&x)?)?)?;
        Ok(x)
    }
}
