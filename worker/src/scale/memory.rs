//! What a rank holds in memory whatever its micro-batch, and how many tokens fit into the rest.

use ilm_model::Precision;
use serde::Serialize;

use crate::config::Experiment;

/// Micro-batches beyond this many visible tokens are no faster: every matrix product fills the processor already.
pub const MOST_TOKENS: usize = 16_384;

/// Fewer tokens than this are never chosen: rows would be computed one by one.
pub const LEAST_TOKENS: usize = 256;

/// Bytes that a rank holds during a step beside activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// Parameters in fp32, and their rounded copy.
    pub parameters: u64,
    /// Gradients in fp32.
    pub gradients: u64,
    /// Both moments and the moving average.
    pub optimizer: u64,
    /// Logits of the output layer that are alive at a time, and their gradient.
    pub logits: u64,
    /// On the host: the copy that a checkpoint is written from, batches made ahead, decoded row groups, whose bound is one for all
    /// splits and sources.
    pub host: u64,
}

impl Resident {
    /// Bytes where the model is: on a GPU all but the host's.
    pub fn device(&self) -> u64 {
        [self.parameters, self.gradients, self.optimizer, self.logits]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// All bytes, for a model on the host.
    pub fn total(&self) -> u64 {
        self.device().saturating_add(self.host)
    }
}

/// The sizes that decide how much a rank holds.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Elements of a flat buffer.
    pub elements: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Ranks.
    pub world_size: u64,
    /// Whether the model is on a GPU.
    pub on_gpu: bool,
}

impl Sizes {
    /// What one rank holds.
    pub fn resident(&self, experiment: &Experiment) -> Resident {
        const FP32: u64 = 4;
        let rounded = match experiment.trainer.precision {
            Precision::Fp32 => 0,
            Precision::Bf16 => 2,
        };
        let averages = u64::from(experiment.trainer.ema_decay.is_some());
        Resident {
            parameters: self.elements.saturating_mul(FP32 + rounded),
            gradients: self.elements.saturating_mul(FP32),
            optimizer: self.elements.div_ceil(self.shards(experiment)).saturating_mul((2 + averages) * FP32),
            logits: self.logits(experiment),
            host: self.host(experiment, averages),
        }
    }

    /// Ranks that share one set of moments and averages.
    fn shards(&self, experiment: &Experiment) -> u64 {
        let ranks = usize::try_from(self.world_size).unwrap_or(usize::MAX);
        if experiment.trainer.shards_optimizer(ranks) { self.world_size } else { 1 }
    }

    /// The budget, or the logits of a single token in fp32 and rounded.
    fn logits(&self, experiment: &Experiment) -> u64 {
        const FP32_AND_ROUNDED: u64 = 6;
        let budget = experiment.loss.head_budget(self.on_gpu) as u64;
        budget.max(self.vocabulary.saturating_mul(FP32_AND_ROUNDED))
    }

    fn host(&self, experiment: &Experiment, averages: u64) -> u64 {
        /// Arrays of a batch, of 8 bytes a token: ids, positions, types, gaps, targets and their counts, rounded up.
        const BATCH_BYTES: u64 = 8 * 8;
        let (data, world_size) = (&experiment.data, self.world_size);
        let sections = if experiment.checkpoint.asynchronous { 3 + averages } else { 0 };
        let staging = self.elements.div_ceil(world_size).saturating_mul(sections * 4);
        let steps = data.prefetch_steps.saturating_add(data.threads).saturating_add(1) as u64;
        let rows = (experiment.global_batch_size as u64).div_ceil(world_size).saturating_mul(steps);
        let batches = rows.saturating_mul(experiment.row_length() as u64).saturating_mul(BATCH_BYTES);
        let row_groups = (data.memory_mib as u64).saturating_mul(1 << 20);
        [staging, batches, row_groups].into_iter().fold(0, u64::saturating_add)
    }
}

/// How many visible tokens a micro-batch may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBudget {
    /// The number: a power of two, so that a little more or less memory does not change it.
    pub tokens: usize,
    /// Whether memory suffices for it, and for a row of the longest kind.
    pub fits: bool,
}

impl TokenBudget {
    /// Of `available` bytes with `resident` taken, for tokens of `per_token` bytes and rows of up to `row_length` tokens. A
    /// tenth is left for what nobody counts.
    pub fn new(available: u64, resident: u64, per_token: u64, row_length: usize) -> Self {
        let room = (available - available / 10).saturating_sub(resident);
        let fitting = usize::try_from(room / per_token.max(1)).unwrap_or(usize::MAX);
        let tokens = fitting.clamp(LEAST_TOKENS, MOST_TOKENS);
        let tokens = 1 << tokens.ilog2();
        Self { tokens, fits: fitting >= tokens.max(row_length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_powers_of_two_between_bounds() {
        let budget = |available, row_length| TokenBudget::new(available, 1000, 100, row_length);
        // 9 of 10 bytes, less 1000: room for 890 tokens.
        assert_eq!(budget(100_000, 128), TokenBudget { tokens: 512, fits: true });
        assert_eq!(budget(100_000, 1024), TokenBudget { tokens: 512, fits: false });
        assert_eq!(budget(u64::MAX, 1024), TokenBudget { tokens: MOST_TOKENS, fits: true });
        assert_eq!(budget(0, 1), TokenBudget { tokens: LEAST_TOKENS, fits: false });
        for available in [99_000, 101_000, 110_000] {
            assert_eq!(budget(available, 128).tokens, 512, "a little memory more or less changes nothing");
        }
    }

    #[test]
    fn resident_memory_equals_a_count_by_hand() {
        let mut experiment = Experiment { global_batch_size: 8, block_size: 10, ..Experiment::default() };
        experiment.data.memory_mib = 1;
        experiment.trainer.shard_optimizer = Some(false);
        experiment.loss.head_budget_mib = Some(1);
        let sizes = Sizes { elements: 1000, vocabulary: 50, world_size: 2, on_gpu: false };
        let resident = sizes.resident(&experiment);
        assert_eq!((resident.parameters, resident.gradients, resident.optimizer), (4000, 4000, 12_000));
        assert_eq!(resident.logits, 1 << 20);
        // 500 elements of 16 bytes; 6 steps of 4 rows of 10 tokens of 64 bytes; a MiB of row groups.
        assert_eq!(resident.host, 8000 + 6 * 4 * 10 * 64 + (1 << 20));
        assert_eq!(resident.total(), resident.device() + resident.host);

        experiment.trainer.precision = Precision::Bf16;
        experiment.trainer.ema_decay = None;
        experiment.trainer.shard_optimizer = None;
        experiment.checkpoint.asynchronous = false;
        let sharded = Sizes { vocabulary: 1 << 20, ..sizes }.resident(&experiment);
        assert_eq!((sharded.parameters, sharded.optimizer), (6000, 4000));
        assert_eq!(sharded.logits, 6 << 20, "a token's logits are never divided");
    }
}
