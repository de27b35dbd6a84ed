//! The arithmetic that a step cannot do without, counted on the positions that hold something.

use data_pipeline::{PackedBatch, StepBatch};
use ilm_model::ModelShape;

/// What the steps of a pass consist of. Add-multiplies count as two operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Examples.
    pub examples: f64,
    /// Visible tokens: those that go through the blocks.
    pub tokens: f64,
    /// Rows of logits: every visible token but CLS of every example that lacks tokens.
    pub scored: f64,
    /// Sum over examples of the squared number of visible tokens.
    pub pairs: f64,
    /// Micro-batches.
    pub micro_batches: f64,
}

impl Work {
    /// The work of some steps.
    pub fn of(steps: &[StepBatch]) -> Self {
        let batches = steps.iter().flat_map(|step| &step.micro_batches);
        batches.map(Self::of_batch).fold(Self::default(), Self::plus)
    }

    /// The work of a micro-batch.
    pub fn of_batch(batch: &PackedBatch) -> Self {
        let mut work = Self { micro_batches: 1.0, ..Self::default() };
        for row in batch.row_ptr().windows(2) {
            let length = (row[1] - row[0]) as f64;
            let lacks_tokens = batch.tgt_ptr()[row[0] as usize] < batch.tgt_ptr()[row[1] as usize];
            work.examples += 1.0;
            work.tokens += length;
            work.pairs += length * length;
            if lacks_tokens {
                work.scored += length - 1.0;
            }
        }
        work
    }

    fn plus(self, other: Self) -> Self {
        let (mut sums, other) = (self.to_sums(), other.to_sums());
        sums.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        Self::from_sums(sums)
    }

    /// Operations of forward and backward. Per token 6 for every weight of the blocks, per scored row 6 d V, and in
    /// attention 12 d for every pair of tokens of an example and block; norms, activations and the class head are left out.
    pub fn flops(&self, shape: &ModelShape) -> f64 {
        let [d, f, layers] = [shape.config.d_model, shape.config.feed_forward(), shape.config.num_layers]
            .map(|size| size as f64);
        let weights = layers * (4.0 * d * d + 2.0 * d * f);
        6.0 * weights * self.tokens
            + 12.0 * layers * d * self.pairs
            + 6.0 * d * shape.num_embeddings as f64 * self.scored
    }

    /// As numbers that are summed over ranks.
    pub fn to_sums(self) -> [f64; 5] {
        [self.examples, self.tokens, self.scored, self.pairs, self.micro_batches]
    }

    /// The sums over ranks.
    pub fn from_sums([examples, tokens, scored, pairs, micro_batches]: [f64; 5]) -> Self {
        Self { examples, tokens, scored, pairs, micro_batches }
    }
}

#[cfg(test)]
mod tests {
    use data_pipeline::{BatchArrays, SampleKey};
    use ilm_model::{ModelConfig, Precision, Recompute};

    use super::*;

    #[test]
    fn only_what_holds_something_counts() {
        // Rows of 3 and 2 visible tokens; only the first lacks tokens.
        let arrays = BatchArrays {
            row_ptr: &[0, 3, 5][..],
            cls: &[0, 0],
            tokens: &[1, 4, 7, 1, 4],
            positions: &[0, 1, 2, 0, 1],
            token_types: &[0, 2, 2, 0, 2],
            tgt_ptr: &[0, 0, 1, 1, 1, 1],
            tgt_ids: &[9],
            tgt_counts: &[1],
        };
        let samples = (0..2).map(|row| SampleKey { position: row, epoch: 0, row }).collect();
        let micro_batches = vec![PackedBatch::from_arrays(samples, arrays).unwrap()];
        let work = Work::of(&[StepBatch { position: 0, next_position: 2, micro_batches, skipped: 0 }]);
        let expected = Work { examples: 2.0, tokens: 5.0, scored: 2.0, pairs: 13.0, micro_batches: 1.0 };
        assert_eq!(work, expected);
        assert_eq!(Work::from_sums(work.to_sums()), work);

        let config = ModelConfig { d_model: 8, num_layers: 2, nhead: 2, ..ModelConfig::default() };
        let shape = ModelShape {
            config,
            num_embeddings: 10,
            padding_idx: 0,
            max_length: 8,
            precision: Precision::Fp32,
            recompute: Recompute::None,
        };
        let (blocks, attention, head) = (6 * 2 * 12 * 64 * 5, 12 * 2 * 8 * 13, 6 * 8 * 10 * 2);
        assert_eq!(work.flops(&shape), f64::from(blocks + attention + head));
    }
}
