//! How much memory a visible token takes between forward and backward: a function of the model's shape.

use crate::config::{Activation, ModelShape, Precision, Recompute};

/// Most places of a bucket of a GPU for each token, as far as rows of a step go: buckets are wide there, and rows of all lengths from 1
/// to that of the longest fill half of one.
const PLACES: u64 = 2;

/// Most bytes of activations that a visible token of a micro-batch keeps alive at a time. Where blocks are computed again,
/// each keeps its input alone, and one at a time is whole.
///
/// Counted are, with `d` features, a feed-forward part of `f`, and `e` bytes of a product's operand (2 in bf16, 4 in fp32):
/// - of every block: both sums of the residual stream in fp32 (8 d), both normed values, the context and the attention's
///   three inputs (6 d e), the activated values (f e), and for GELU what was activated (f e). On a GPU attention keeps its inputs and
///   its result in padded places beside the packed context: 4 d e for each of at most two places, and d e;
/// - once: what a block's backward pass makes before it lets go of it, in fp32 (three of f, eight of d), and hidden states, their
///   gradient and the rows of the output matrix (12 d).
///
/// Logits are not counted: `loss.head_budget_mib` bounds them. What is counted once was fitted to the peaks of a process in bf16 with
/// a model of 768 x 12 on a CPU; in fp32 the peak grew by a tenth more.
pub fn activation_bytes_per_token(shape: &ModelShape, on_gpu: bool) -> u64 {
    let config = &shape.config;
    let (d, f) = (config.d_model.max(0) as u64, config.feed_forward().max(0) as u64);
    let layers = config.num_layers.max(0) as u64;
    let operand = match shape.precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
    };
    let activated = match config.activation {
        Activation::Relu => 1,
        Activation::Gelu => 2,
    };
    let attention = if on_gpu { 4 * PLACES + 1 } else { 4 };
    let block = 8 * d + (2 + attention) * d * operand + activated * f * operand;
    let blocks = match shape.recompute {
        Recompute::None => layers * block,
        Recompute::Blocks => layers * 4 * d + block,
    };
    let once = 4 * (3 * f + 8 * d) + 12 * d;
    blocks + once
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn bytes(precision: Precision, activation: Activation, recompute: Recompute) -> [u64; 2] {
        let config = ModelConfig { d_model: 10, num_layers: 3, activation, ..ModelConfig::default() };
        let shape =
            ModelShape { config, num_embeddings: 7, padding_idx: 0, max_length: 5, precision, recompute };
        [false, true].map(|on_gpu| activation_bytes_per_token(&shape, on_gpu))
    }

    #[test]
    fn equals_a_count_by_hand() {
        // A width of 10 and a feed-forward part of 40: 800 + 120 bytes once. A GPU keeps five more arrays of the width.
        let host = 3 * (80 + 120 + 80) + 920;
        assert_eq!(bytes(Precision::Bf16, Activation::Relu, Recompute::None), [host, host + 3 * 100]);
        let host = 3 * (80 + 120 + 160) + 920;
        assert_eq!(bytes(Precision::Bf16, Activation::Gelu, Recompute::None), [host, host + 3 * 100]);
        let host = 3 * (80 + 240 + 160) + 920;
        assert_eq!(bytes(Precision::Fp32, Activation::Relu, Recompute::None), [host, host + 3 * 200]);
        let host = 3 * 40 + 280 + 920;
        assert_eq!(bytes(Precision::Bf16, Activation::Relu, Recompute::Blocks), [host, host + 100]);
    }
}
