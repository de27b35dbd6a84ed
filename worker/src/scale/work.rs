//! What a step computes: operations and memory traffic as functions of the model's shape and the rows.

use ilm_model::{ModelShape, Precision, Recompute};
use serde::Serialize;

use super::rows::RowMoments;
use crate::bench::Work as Counted;

/// Bytes per feature that the operations between the products of a block read and write on a GPU, forward and backward: two norms
/// with their additions and dropout, rotation, layout for attention, activation.
const BLOCK_BYTES: [f64; 2] = [556.0, 432.0];

/// Bytes per logit that the loss reads and writes beside the products: written, read for the largest and the softmax, written as
/// that, read and written as gradient, read by two products.
const LOGIT_BYTES: [f64; 2] = [36.0, 30.0];

/// Bytes per parameter that the optimizer's kernels on a GPU read and write, those of the gradient's norm and of decay among them, and
/// the kernels of one window, for a matrix in bf16.
const OPTIMIZER_BYTES: f64 = 120.0;
const OPTIMIZER_KERNELS: f64 = 14.0;

/// Bytes per parameter that rounding reads and writes.
const ROUNDING_BYTES: f64 = 6.0;

/// Kernels of a block, forward and backward, and of all that is outside the blocks, with two buckets of rows and three groups of
/// logits.
const BLOCK_KERNELS: f64 = 120.0;
const OTHER_KERNELS: f64 = 150.0;

/// What some rows cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// Operations of matrix products: a multiplication and an addition are two.
    pub gemm_flops: f64,
    /// Operations of attention.
    pub attention_flops: f64,
    /// Those of the operations that a step without recomputation has, which model FLOPs utilisation counts.
    pub useful_flops: f64,
    /// Bytes that go through memory outside of products and attention.
    pub traffic: f64,
}

impl Work {
    /// Of rows with `tokens` visible tokens in all, distributed as `rows`.
    pub fn new(shape: &ModelShape, rows: &RowMoments, tokens: f64) -> Self {
        let pairs = tokens * rows.visible_squared / rows.visible;
        let blocks = Counted { tokens, ..Counted::default() }.flops(shape);
        let attention = Counted { pairs, ..Counted::default() }.flops(shape);
        let head = Counted { scored: tokens, ..Counted::default() }.flops(shape);
        // A forward pass is a third of forward and backward.
        let again = match shape.recompute {
            Recompute::None => 1.0,
            Recompute::Blocks => 4.0 / 3.0,
        };
        let features = (shape.config.d_model * shape.config.num_layers) as f64;
        let precision = usize::from(shape.precision == Precision::Bf16);
        let (block_bytes, logit_bytes) = (BLOCK_BYTES[precision], LOGIT_BYTES[precision]);
        Self {
            gemm_flops: again * blocks + head,
            attention_flops: again * attention,
            useful_flops: blocks + head + attention,
            traffic: tokens * (again * block_bytes * features + logit_bytes * shape.num_embeddings as f64),
        }
    }
}

/// Bytes that a rank moves to update `updated` parameters and, in bf16, to round all.
pub fn optimizer_traffic(shape: &ModelShape, updated: f64, all: f64) -> f64 {
    let rounded = match shape.precision {
        Precision::Fp32 => 0.0,
        Precision::Bf16 => all,
    };
    OPTIMIZER_BYTES * updated + ROUNDING_BYTES * rounded
}

/// Kernels of an update in so many windows.
pub fn optimizer_kernels(windows: f64) -> f64 {
    OPTIMIZER_KERNELS * windows
}

/// Kernels of one micro-batch.
pub fn kernels(shape: &ModelShape) -> f64 {
    BLOCK_KERNELS * shape.config.num_layers as f64 + OTHER_KERNELS
}

#[cfg(test)]
mod tests {
    use ilm_model::ModelConfig;

    use super::*;

    #[test]
    fn work_equals_a_count_by_hand() {
        let config = ModelConfig { d_model: 10, num_layers: 2, ..ModelConfig::default() };
        let mut shape = ModelShape {
            config,
            num_embeddings: 100,
            padding_idx: 0,
            max_length: 9,
            precision: Precision::Fp32,
            recompute: Recompute::None,
        };
        // Five rows of 4 tokens.
        let rows = RowMoments { source: 8.0, visible: 4.0, visible_squared: 16.0, longest: 8.0 };
        let work = Work::new(&shape, &rows, 20.0);
        let block = 4.0 * 100.0 + 2.0 * 400.0;
        assert_eq!(work.gemm_flops, 6.0 * 20.0 * (2.0 * block + 1000.0));
        assert_eq!(work.attention_flops, 12.0 * 10.0 * 2.0 * 5.0 * 16.0);
        assert_eq!(work.useful_flops, work.gemm_flops + work.attention_flops);
        assert_eq!(work.traffic, 20.0 * (556.0 * 10.0 * 2.0 + 36.0 * 100.0));

        shape.recompute = Recompute::Blocks;
        let again = Work::new(&shape, &rows, 20.0);
        assert!((again.gemm_flops - work.gemm_flops - 2.0 * 20.0 * 2.0 * block).abs() < 1e-6);
        assert_eq!(again.useful_flops, work.useful_flops);
        assert_eq!(optimizer_traffic(&shape, 10.0, 40.0), 1200.0);
        shape.precision = Precision::Bf16;
        assert_eq!(optimizer_traffic(&shape, 10.0, 40.0), 1440.0);
    }
}
