//! How many visible tokens a micro-batch may have: as told, as before, or as memory allows.

use checkpoints::Checkpoint;
use ilm_model::{Model, activation_bytes_per_token};

use super::save::RunFacts;
use crate::config::Experiment;
use crate::device::Available;
use crate::scale::{Sizes, TokenBudget};

/// Where a limit of tokens is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `trainer.max_tokens_per_micro_batch`.
    Setting,
    /// The checkpoint that the run goes on from.
    Checkpoint,
    /// The host's memory that was found.
    Memory,
    /// The free memory of the GPUs.
    GpuMemory,
}

impl Source {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Setting => "as set",
            Self::Checkpoint => "as in the checkpoint",
            Self::Memory => "by available memory",
            Self::GpuMemory => "by free memory of the GPUs",
        }
    }
}

/// The limit of a run, alike on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimit {
    /// Most visible tokens of a micro-batch.
    pub tokens: usize,
    /// Where it is from.
    pub source: Source,
    /// What memory allows.
    pub budget: TokenBudget,
    /// Which memory that is.
    memory: Source,
}

impl TokenLimit {
    /// `available` is what a rank found before it took any; `recorded` is the limit of the checkpoint that the run goes
    /// on from. Another cut would change dropout and rounding, so what was found once is kept.
    pub fn new(
        config: &Experiment,
        model: &Model,
        world_size: usize,
        available: Available,
        recorded: Option<u64>,
    ) -> Self {
        let sizes = Sizes {
            elements: model.arena().flat_params().capacity() as u64,
            vocabulary: model.shape().num_embeddings.unsigned_abs(),
            world_size: world_size as u64,
            on_gpu: matches!(available, Available::OnGpu(_)),
        };
        let resident = sizes.resident(config);
        let (available, resident, memory) = match available {
            Available::OnHost(bytes) => (bytes, resident.total(), Source::Memory),
            Available::OnGpu(bytes) => (bytes, resident.device(), Source::GpuMemory),
        };
        let per_token = activation_bytes_per_token(model.shape(), sizes.on_gpu);
        let budget = TokenBudget::new(available, resident, per_token, config.row_length());
        let recorded = recorded.and_then(|tokens| usize::try_from(tokens).ok()).filter(|&tokens| tokens > 0);
        let (tokens, source) = match (config.trainer.max_tokens_per_micro_batch, recorded) {
            (Some(tokens), _) => (tokens, Source::Setting),
            (None, Some(tokens)) => (tokens, Source::Checkpoint),
            (None, None) => (budget.tokens, memory),
        };
        Self { tokens, source, budget, memory }
    }

    /// A warning if memory may not suffice.
    pub fn warning(&self) -> Option<String> {
        let Self { tokens, source, budget, memory } = self;
        let whose = if *memory == Source::GpuMemory {
            "the free memory of the GPUs"
        } else {
            "this machine's memory"
        };
        match source {
            Source::Memory if !budget.fits => Some(format!(
                "memory is short even for micro-batches of {tokens} tokens or of one row; use fewer ranks a host, a smaller \
                 model or block_size, or lower loss.head_budget_mib and data.memory_mib"
            )),
            Source::GpuMemory if !budget.fits => Some(format!(
                "memory of the GPUs is short even for micro-batches of {tokens} tokens or of one row; free what others use of it, take \
                 a smaller model or block_size, or lower loss.head_budget_mib"
            )),
            Source::Checkpoint if *tokens > budget.tokens => Some(format!(
                "the checkpoint's micro-batches have up to {tokens} tokens, but {whose} suggests {}; if it runs \
                 out, set trainer.max_tokens_per_micro_batch={} (dropout and rounding will differ)",
                budget.tokens, budget.tokens
            )),
            _ => None,
        }
    }
}

/// The limit that a checkpoint's run had, if it recorded one.
pub fn recorded_tokens(checkpoint: &Checkpoint) -> Option<u64> {
    checkpoint.state().counters.get(RunFacts::MICRO_BATCH_TOKENS).copied()
}

#[cfg(test)]
mod tests {
    use ilm_model::{ModelConfig, ModelShape, Precision, Recompute};

    use super::*;

    fn limit(setting: Option<usize>, recorded: Option<u64>, available: u64) -> TokenLimit {
        limit_on(setting, recorded, Available::OnHost(available))
    }

    fn limit_on(setting: Option<usize>, recorded: Option<u64>, available: Available) -> TokenLimit {
        let mut config = settings();
        config.trainer.max_tokens_per_micro_batch = setting;
        TokenLimit::new(&config, &model(), 1, available, recorded)
    }

    /// With the same budget of logits on hosts and GPUs.
    fn settings() -> Experiment {
        let mut config = Experiment::default();
        config.loss.head_budget_mib = Some(64);
        config
    }

    fn model() -> Model {
        let model = ModelConfig {
            d_model: 8,
            num_layers: 1,
            nhead: 1,
            rotary_emb_dim: Some(8),
            ..ModelConfig::default()
        };
        let (precision, recompute) = (Precision::Fp32, Recompute::None);
        let shape = ModelShape {
            config: model,
            num_embeddings: 10,
            padding_idx: 0,
            max_length: 128,
            precision,
            recompute,
        };
        Model::new(shape, 1).unwrap()
    }

    #[test]
    fn the_setting_wins_then_the_checkpoint_then_memory() {
        let plenty = u64::MAX;
        let found = |limit: TokenLimit| (limit.tokens, limit.source, limit.warning());
        assert_eq!(found(limit(Some(7), Some(99), plenty)), (7, Source::Setting, None));
        assert_eq!(found(limit(None, Some(99), plenty)), (99, Source::Checkpoint, None));
        assert_eq!(found(limit(None, None, plenty)), (crate::scale::MOST_TOKENS, Source::Memory, None));
    }

    #[test]
    fn short_memory_is_said() {
        let shrunk = limit(None, Some(9999), 0);
        assert_eq!(shrunk.tokens, 9999, "a resumed run keeps its cuts");
        assert!(shrunk.warning().unwrap().contains("trainer.max_tokens_per_micro_batch=256"));
        assert!(limit(None, None, 0).warning().unwrap().contains("memory is short"));
        assert_eq!(limit(Some(9999), None, 0).warning(), None, "who sets it knows");
    }

    #[test]
    fn a_gpus_memory_counts_and_holds_nothing_of_the_hosts() {
        let (config, model) = (settings(), model());
        let elements = model.arena().flat_params().capacity() as u64;
        let resident = Sizes { elements, vocabulary: 10, world_size: 1, on_gpu: true }.resident(&config);
        assert!(resident.host > 0);
        // Nine tenths are room for what the GPU holds and 1000 tokens.
        let room = resident.device() + 1000 * activation_bytes_per_token(model.shape(), true);
        let bytes = (room * 10).div_ceil(9);
        let found = limit_on(None, None, Available::OnGpu(bytes));
        assert_eq!((found.tokens, found.source.reason()), (512, "by free memory of the GPUs"));
        // On a host a token takes less, and batches and checkpoint copies are there too.
        let of_tokens = 1000 * activation_bytes_per_token(model.shape(), false);
        let bytes = |resident: u64| ((resident + of_tokens) * 10).div_ceil(9);
        let host = limit(None, None, bytes(resident.device()));
        assert!(host.tokens < 512, "{host:?}");
        assert_eq!(limit(None, None, bytes(resident.total())).tokens, 512);
    }

    #[test]
    fn short_memory_of_gpus_is_said() {
        let short = |recorded| limit_on(None, recorded, Available::OnGpu(0)).warning().unwrap();
        assert!(short(None).starts_with("memory of the GPUs is short") && !short(None).contains("host"));
        assert!(short(Some(9999)).contains("but the free memory of the GPUs suggests 256"));
    }
}
