//! The root of the settings and the sections that the worker owns; other crates own theirs.

use checkpoints::config::CheckpointConfig;
use data_pipeline::config::DataConfig;
use ilm_model::config::{LossConfig, ModelConfig, Precision, PredictorConfig, Recompute};
use serde::{Deserialize, Serialize};

use crate::scale::MOST_TOKENS;
use crate::signals::StopSignal;

/// Everything that defines a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// What the experiment is, in one line.
    pub description: String,
    /// Seed of the initial values, the sample order, the drops, dropout and sampling.
    pub seed: u64,
    /// Most examples of one forward and backward pass of a rank; none leaves it to `trainer.max_tokens_per_micro_batch`.
    pub per_device_batch_size: Option<usize>,
    /// Examples of one optimizer step over all ranks.
    pub global_batch_size: usize,
    /// Most tokens of the part that tokens are dropped from, special tokens included.
    pub block_size: usize,
    /// Most tokens of the prompt, CLS included (star graphs only).
    pub input_block_size: Option<usize>,
    /// The rows and how they become examples.
    pub data: DataConfig,
    /// The network.
    pub model: ModelConfig,
    /// The weights of the loss.
    pub loss: LossConfig,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub lr_scheduler: LrSchedulerConfig,
    /// The training loop.
    pub trainer: TrainerConfig,
    /// When to save and what to keep.
    pub checkpoint: CheckpointConfig,
    /// How sequences are generated.
    pub predictor: PredictorConfig,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            description: String::new(),
            seed: 1,
            per_device_batch_size: Some(64),
            global_batch_size: 64,
            block_size: 128,
            input_block_size: None,
            data: DataConfig::default(),
            model: ModelConfig::default(),
            loss: LossConfig::default(),
            optimizer: OptimizerConfig::default(),
            lr_scheduler: LrSchedulerConfig::default(),
            trainer: TrainerConfig::default(),
            checkpoint: CheckpointConfig::default(),
            predictor: PredictorConfig::default(),
        }
    }
}

impl Experiment {
    /// Tokens of the longest row: prompt block plus block.
    pub fn row_length(&self) -> usize {
        self.input_block_size.unwrap_or(0).saturating_add(self.block_size)
    }

    /// Rows of a batch of an evaluation or of generation, whose results do not depend on it: no more than have as many
    /// tokens as a micro-batch may, if all are as long as a row can be.
    pub fn evaluation_rows(&self) -> usize {
        const UNLESS_TOLD: usize = 64;
        let tokens = self.trainer.max_tokens_per_micro_batch.unwrap_or(MOST_TOKENS);
        let longest = usize::try_from(self.max_length()).unwrap_or(usize::MAX).max(1);
        self.per_device_batch_size.unwrap_or(UNLESS_TOLD).min(tokens / longest).max(1)
    }

    /// Tokens that the model has positions for: `model.max_length`, else the longest row.
    pub fn max_length(&self) -> i64 {
        self.model.max_length.unwrap_or_else(|| i64::try_from(self.row_length()).unwrap_or(i64::MAX))
    }
}

/// Section `optimizer`: AdamW with decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay per step, in units of the learning rate, of the parameters that decay.
    pub weight_decay: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: 1e-4, weight_decay: 0.01, betas: [0.9, 0.999], eps: 1e-8 }
    }
}

/// Section `lr_scheduler`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrSchedulerConfig {
    /// The curve.
    pub name: Schedule,
    /// Optimizer steps of linear warm-up from 0.
    pub num_warmup_steps: Option<u64>,
    /// Warm-up as a fraction of `trainer.max_steps`, where `num_warmup_steps` is not set.
    pub fraction_warmup_steps: Option<f64>,
    /// Waves of the cosine; a half ends at 0.
    pub num_cycles: f64,
}

impl Default for LrSchedulerConfig {
    fn default() -> Self {
        Self {
            name: Schedule::Constant,
            num_warmup_steps: None,
            fraction_warmup_steps: None,
            num_cycles: 0.5,
        }
    }
}

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The same from the first step; warm-up does not apply.
    Constant,
    /// Warm-up, then constant.
    ConstantWithWarmup,
    /// Warm-up, then a straight line to 0 at the last step.
    Linear,
    /// Warm-up, then `num_cycles` waves of a cosine.
    Cosine,
}

/// Where ranks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// On GPUs if every rank finds one, on processors if none does.
    Auto,
    /// On processors.
    Cpu,
    /// On GPUs, one for each rank.
    Cuda,
}

/// Section `trainer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerConfig {
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Type of the matrix products.
    pub precision: Precision,
    /// What is kept of a forward pass for its backward pass: everything, or the inputs of the blocks, which then take a third more
    /// time and a fraction of the memory.
    pub recompute: Recompute,
    /// Where ranks compute.
    pub device: DeviceChoice,
    /// Whether GPUs take only kernels that give the same bits every time, a few of which are slower. Processors have no others.
    pub deterministic: bool,
    /// Largest 2-norm of the gradient over all parameters.
    pub gradient_clip_val: f64,
    /// Largest decay of the running average of the parameters; none keeps no average.
    pub ema_decay: Option<f64>,
    /// Optimizer steps between two log lines.
    pub log_every_n_steps: u64,
    /// Optimizer steps between two validations; the last step of a run is validated as well. None never validates.
    pub val_check_interval: Option<u64>,
    /// Most visible tokens of one forward and backward pass of a rank; none takes what memory allows, and in a resumed run
    /// what it had before. A longer row is a pass of its own. Evaluations and generation take no more rows at a time than
    /// have so many tokens (unset: 16,384) at full length.
    pub max_tokens_per_micro_batch: Option<usize>,
    /// Threads of a rank's tensor operations; none leaves it to libtorch.
    pub threads: Option<usize>,
    /// Seconds that a rank waits for the others before it gives up.
    pub collective_timeout_secs: u64,
    /// Signals that ask to save and stop; others do what they usually do. `ilm-launch` sends USR1.
    pub stop_signals: Vec<StopSignal>,
    /// Whether ranks swap rows of a step until all have about as many visible tokens.
    pub balance_ranks: bool,
    /// Whether gradients travel between ranks while backward computes the next ones, and updated parameters while the next forward
    /// pass runs.
    pub overlap_reduction: bool,
    /// Size of the pieces in which gradients travel, in MiB.
    pub reduce_bucket_mib: usize,
    /// Whether a rank keeps moments and averages of its own part of the parameters only; unset: above one rank.
    pub shard_optimizer: Option<bool>,
    /// Optimizer steps between two checks that all ranks have the same parameters; none never checks.
    pub checksum_every_n_steps: Option<u64>,
    /// Steps one after the other whose update is left out because loss or gradient is not finite; one more ends the run.
    pub max_skipped_steps_in_row: u64,
    /// Standard deviations above its moving mean at which a loss or gradient norm is a spike, whose update is left out; none
    /// leaves out no spike.
    pub skip_spikes_above: Option<f64>,
}

impl TrainerConfig {
    /// Whether each of `world_size` ranks updates its own part of the parameters only.
    pub fn shards_optimizer(&self, world_size: usize) -> bool {
        world_size > 1 && self.shard_optimizer.unwrap_or(true)
    }

    /// Whether `world_size` ranks swap rows.
    pub fn balances_ranks(&self, world_size: usize) -> bool {
        world_size > 1 && self.balance_ranks
    }
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            max_steps: 1_000_000,
            precision: Precision::Fp32,
            device: DeviceChoice::Auto,
            deterministic: true,
            recompute: Recompute::None,
            gradient_clip_val: 1.0,
            ema_decay: Some(0.9999),
            log_every_n_steps: 50,
            val_check_interval: None,
            max_tokens_per_micro_batch: None,
            threads: None,
            collective_timeout_secs: 600,
            stop_signals: StopSignal::USUAL.into(),
            balance_ranks: true,
            overlap_reduction: true,
            reduce_bucket_mib: 25,
            shard_optimizer: None,
            checksum_every_n_steps: Some(100),
            max_skipped_steps_in_row: 3,
            skip_spikes_above: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_take_no_more_tokens_at_once_than_training() {
        let mut experiment =
            Experiment { per_device_batch_size: Some(512), block_size: 1024, ..Experiment::default() };
        assert_eq!(experiment.evaluation_rows(), 16);
        experiment.trainer.max_tokens_per_micro_batch = Some(100);
        assert_eq!(experiment.evaluation_rows(), 1, "a longer row is a batch of its own");
        experiment.block_size = 10;
        assert_eq!(experiment.evaluation_rows(), 10);
        experiment.model.max_length = Some(25);
        assert_eq!(experiment.evaluation_rows(), 4, "generated rows may outgrow the block");
        experiment.per_device_batch_size = Some(3);
        assert_eq!(experiment.evaluation_rows(), 3);
    }
}
