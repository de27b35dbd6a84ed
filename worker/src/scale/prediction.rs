//! What one step of a run takes on so many GPUs: time, memory and communication.

use ilm_model::{ModelShape, ParamLayout, Precision, Recompute, activation_bytes_per_token};
use serde::Serialize;

use super::communication::Group;
use super::fullest::Spread;
use super::hardware::Hardware;
use super::limits::{self, Limit};
use super::memory::{Resident, Sizes, TokenBudget};
use super::rows::{Row, RowMoments};
use super::work::{Work, kernels, optimizer_kernels, optimizer_traffic};
use crate::config::Experiment;

const FP32: f64 = 4.0;
const BF16: f64 = 2.0;

/// A run that is planned.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its settings.
    pub experiment: &'a Experiment,
    /// Its model.
    pub shape: &'a ModelShape,
    /// The places of the model's parameters.
    pub layout: &'a ParamLayout,
    /// Its rows.
    pub rows: RowMoments,
    /// Some of them, which stand for all.
    pub looked_at: &'a [Row],
}

/// A step on so many GPUs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Ranks, one for each GPU.
    pub gpus: u64,
    /// Rows of a GPU in a step.
    pub rows: f64,
    /// Visible tokens of a GPU in a step, in the mean and on the fullest one.
    pub tokens: f64,
    /// See `tokens`.
    pub fullest_tokens: f64,
    /// Micro-batches of a step.
    pub micro_batches: f64,
    /// Where the time of a step goes.
    pub seconds: Seconds,
    /// What is exchanged in a step.
    pub exchange: Exchange,
    /// What a GPU holds beside activations.
    pub resident: Resident,
    /// Bytes of activations of the largest micro-batch.
    pub activations: f64,
    /// Examples per second over all GPUs.
    pub examples_per_s: f64,
    /// Visible tokens per second over all GPUs.
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation: useful operations on visible tokens, of what the GPUs could do.
    pub mfu: f64,
    /// Checkpoints.
    pub checkpoint: Checkpoint,
    /// Source tokens per second that a rank needs.
    pub source_tokens_per_s: f64,
    /// What limits the run, worst first.
    pub limits: Vec<Limit>,
}

/// Seconds of a step; they add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Matrix products.
    pub gemm: f64,
    /// Attention.
    pub attention: f64,
    /// Kernels that are bound by memory.
    pub traffic: f64,
    /// Waiting for kernels to start.
    pub launches: f64,
    /// Waiting for the GPU whose rows are the longest.
    pub uneven: f64,
    /// Reducing gradients after the backward pass has ended.
    pub reduce: f64,
    /// The optimizer.
    pub optimizer: f64,
    /// Gathering parameters, where each rank updates its own part.
    pub gather: f64,
}

impl Seconds {
    /// A step.
    pub fn step(&self) -> f64 {
        let Self { gemm, attention, traffic, launches, uneven, reduce, optimizer, gather } = self;
        gemm + attention + traffic + launches + uneven + reduce + optimizer + gather
    }
}

/// Exchange of gradients and parameters in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exchange {
    /// Bytes that a GPU sends.
    pub sent: f64,
    /// Seconds in which gradients are reduced, overlapped or not.
    pub reduce: f64,
    /// Seconds in which parameters are gathered.
    pub gather: f64,
    /// The part of both that is latency.
    pub latency: f64,
}

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Checkpoint {
    /// Bytes of all ranks together.
    pub bytes: f64,
    /// Seconds that training stands still for the copy to the host.
    pub stall: f64,
    /// Seconds until it is written.
    pub write: f64,
    /// Seconds between two checkpoints.
    pub interval: f64,
}

impl Prediction {
    /// Of `gpus` GPUs (at least one).
    pub fn new(subject: &Subject, hardware: &Hardware, gpus: u64) -> Self {
        let Subject { experiment, shape, layout, rows, looked_at } = *subject;
        let rows_of_gpu = experiment.global_batch_size as f64 / gpus as f64;
        let tokens = rows_of_gpu * rows.visible;
        let spread = Spread {
            rows: looked_at,
            global_batch: experiment.global_batch_size as u64,
            ranks: gpus,
            balanced: experiment.trainer.balance_ranks,
        };
        let fullest_tokens = tokens * spread.fullest();
        let sizes = Sizes {
            elements: layout.len() as u64,
            vocabulary: shape.num_embeddings.unsigned_abs(),
            world_size: gpus,
            on_gpu: true,
        };
        let resident = sizes.resident(experiment);
        let most_tokens = most_tokens(subject, hardware, &resident);
        let most_rows = experiment.per_device_batch_size.unwrap_or(usize::MAX) as f64;
        let micro_batches = (tokens / most_tokens).ceil().max((rows_of_gpu / most_rows).ceil());
        let exchange = exchange(subject, hardware, gpus);
        let seconds = seconds(subject, hardware, gpus, micro_batches, fullest_tokens, &exchange);
        let step = seconds.step();
        let examples_per_s = experiment.global_batch_size as f64 / step;
        let useful = Work::new(shape, &rows, tokens).useful_flops;
        let largest = (fullest_tokens / micro_batches).min(most_tokens.max(rows.longest));
        let mut prediction = Self {
            gpus,
            rows: rows_of_gpu,
            tokens,
            fullest_tokens,
            micro_batches,
            seconds,
            exchange,
            activations: largest * activation_bytes_per_token(shape, true) as f64,
            resident,
            examples_per_s,
            tokens_per_s: examples_per_s * rows.visible,
            mfu: useful / (step * peak(shape, hardware)),
            checkpoint: checkpoint(subject, hardware, gpus, step),
            source_tokens_per_s: rows_of_gpu * rows.source / step,
            limits: Vec::new(),
        };
        prediction.limits = limits::of(&prediction, subject, hardware);
        prediction
    }

    /// Bytes that a GPU holds at most.
    pub fn memory(&self) -> f64 {
        self.resident.device() as f64 + self.activations
    }
}

/// Most visible tokens of a micro-batch: as set, or as training would find it.
fn most_tokens(subject: &Subject, hardware: &Hardware, resident: &Resident) -> f64 {
    let experiment = subject.experiment;
    let found = || {
        let per_token = activation_bytes_per_token(subject.shape, true);
        let available = hardware.memory.bytes as u64;
        TokenBudget::new(available, resident.device(), per_token, experiment.row_length()).tokens
    };
    experiment.trainer.max_tokens_per_micro_batch.unwrap_or_else(found) as f64
}

fn peak(shape: &ModelShape, hardware: &Hardware) -> f64 {
    match shape.precision {
        Precision::Fp32 => hardware.compute.fp32_flops,
        Precision::Bf16 => hardware.compute.bf16_flops,
    }
}

/// The share of the peak that products of so many tokens reach.
pub(super) fn gemm_efficiency(hardware: &Hardware, tokens: f64) -> f64 {
    hardware.compute.gemm_efficiency * tokens / (tokens + hardware.compute.gemm_half_tokens)
}

fn seconds(
    subject: &Subject,
    hardware: &Hardware,
    gpus: u64,
    micro_batches: f64,
    fullest_tokens: f64,
    exchange: &Exchange,
) -> Seconds {
    let Subject { experiment, shape, layout, rows, .. } = subject;
    let ranks = gpus as f64;
    let rows_of_gpu = experiment.global_batch_size as f64 / ranks;
    let tokens = rows_of_gpu * rows.visible;
    let work = Work::new(shape, rows, tokens);
    let memory = hardware.memory.bytes_per_s * hardware.memory.efficiency;
    let peak = peak(shape, hardware);
    let gemm = work.gemm_flops / (peak * gemm_efficiency(hardware, tokens / micro_batches));
    let attention = work.attention_flops / (peak * hardware.compute.attention_efficiency);
    let traffic = work.traffic / memory;
    let busy = gemm + attention + traffic;
    let launches = (micro_batches * kernels(shape) * hardware.compute.launch_s - busy).max(0.0);
    let uneven = busy * (fullest_tokens / tokens - 1.0);
    // The gradients of embedding and vectors are the last to be final, so nothing hides their reduction.
    let exact = layout.exact().len() as f64 * FP32;
    let group = Group::new(hardware, gpus);
    let sharded = is_sharded(experiment, gpus);
    let passes = if sharded { 1.0 } else { 2.0 };
    let last = passes * group.seconds(hardware, exact, buckets(experiment, exact));
    let overlap = f64::from(u8::from(experiment.trainer.overlap_reduction));
    let [backward, forward] = [backward_share(shape), 1.0 - backward_share(shape)]
        .map(|share| overlap * share * (busy + launches) / micro_batches);
    // Nor the gathering of their parameters, which a forward pass begins with.
    let first = if sharded { last } else { 0.0 };
    let updated = layout.len() as f64 / if sharded { ranks } else { 1.0 };
    let update = optimizer_traffic(shape, updated, layout.len() as f64) / memory;
    // The host has just waited for the gradient's norm, so nothing is queued before the first of these kernels.
    let windows = buckets(experiment, layout.len() as f64 * FP32);
    let update_launches = optimizer_kernels(windows) * hardware.compute.launch_s;
    Seconds {
        gemm,
        attention,
        traffic,
        launches,
        uneven: uneven.max(0.0),
        reduce: last + (exchange.reduce - last - backward).max(0.0),
        optimizer: update.max(update_launches),
        gather: first + (exchange.gather - first - forward).max(0.0),
    }
}

/// The part of a micro-batch's time that its backward pass takes.
fn backward_share(shape: &ModelShape) -> f64 {
    match shape.recompute {
        Recompute::None => 2.0 / 3.0,
        Recompute::Blocks => 3.0 / 4.0,
    }
}

fn is_sharded(experiment: &Experiment, gpus: u64) -> bool {
    experiment.trainer.shards_optimizer(usize::try_from(gpus).unwrap_or(usize::MAX))
}

/// Pieces in which so many bytes are exchanged.
fn buckets(experiment: &Experiment, bytes: f64) -> f64 {
    const MIB: f64 = 1048576.0;
    (bytes / (experiment.trainer.reduce_bucket_mib as f64 * MIB)).ceil()
}

/// Gradients are reduced and scattered and parameters gathered, matrices rounded if products take them so; or gradients are
/// reduced, scattered and gathered.
fn exchange(subject: &Subject, hardware: &Hardware, gpus: u64) -> Exchange {
    let Subject { experiment, shape, layout, .. } = subject;
    let matrix = if shape.precision == Precision::Bf16 { BF16 } else { FP32 };
    let [all, exact] = [layout.len(), layout.exact().len()].map(|elements| elements as f64);
    let (reduced, gathered) = (all * FP32, exact * FP32 + (all - exact) * matrix);
    let group = Group::new(hardware, gpus);
    let buckets = buckets(experiment, reduced);
    let [reduce, gather] = [reduced, gathered].map(|bytes| group.seconds(hardware, bytes, buckets));
    if !is_sharded(experiment, gpus) {
        let (sent, latency) = (2.0 * group.sent(reduced), 2.0 * group.latency(hardware, buckets));
        return Exchange { sent, reduce: 2.0 * reduce, gather: 0.0, latency };
    }
    Exchange {
        sent: group.sent(reduced) + group.sent(gathered),
        reduce,
        gather,
        latency: 2.0 * group.latency(hardware, buckets),
    }
}

fn checkpoint(subject: &Subject, hardware: &Hardware, gpus: u64, step: f64) -> Checkpoint {
    let experiment = subject.experiment;
    let sections = if experiment.trainer.ema_decay.is_some() { 4.0 } else { 3.0 };
    let bytes = subject.layout.len() as f64 * FP32 * sections;
    let nodes = gpus.div_ceil(hardware.gpus_per_node) as f64;
    let rate = (nodes * hardware.host.node_write_bytes_per_s).min(hardware.host.write_bytes_per_s);
    Checkpoint {
        bytes,
        stall: bytes / gpus as f64 / hardware.host.bytes_per_s,
        write: bytes / rate,
        interval: experiment.checkpoint.every_n_steps as f64 * step,
    }
}

#[cfg(test)]
mod tests {
    use ilm_model::ModelConfig;

    use super::super::testing::hardware;
    use super::*;
    use crate::config::TrainerConfig;

    /// 4 rows of 6 visible tokens each on `gpus` GPUs.
    fn predict(gpus: u64, change: impl FnOnce(&mut Experiment, &mut Hardware)) -> (Prediction, f64) {
        let mut experiment = Experiment { global_batch_size: 4, block_size: 10, ..Experiment::default() };
        experiment.data.canonical_lanes = 8;
        experiment.loss.head_budget_mib = Some(64);
        let mut hardware = hardware();
        change(&mut experiment, &mut hardware);
        let config = ModelConfig {
            d_model: 16,
            num_layers: 2,
            nhead: 1,
            rotary_emb_dim: Some(16),
            ..ModelConfig::default()
        };
        let shape = ModelShape {
            config,
            num_embeddings: 20,
            padding_idx: 0,
            max_length: 10,
            precision: experiment.trainer.precision,
            recompute: experiment.trainer.recompute,
        };
        let layout = ParamLayout::new(&shape).unwrap();
        let rows = RowMoments { source: 10.0, visible: 6.0, visible_squared: 36.0, longest: 10.0 };
        let looked_at = &[];
        let subject = Subject { experiment: &experiment, shape: &shape, layout: &layout, rows, looked_at };
        (Prediction::new(&subject, &hardware, gpus), layout.len() as f64)
    }

    #[test]
    fn one_gpu_equals_a_count_by_hand() {
        let (one, parameters) = predict(1, |_, _| {});
        assert_eq!((one.rows, one.tokens, one.micro_batches), (4.0, 24.0, 1.0));
        assert!((one.fullest_tokens - 24.0).abs() < 1e-6);
        // 24 tokens reach 24 / 34 of the efficiency of 0.5 at 100 FLOP/s.
        let weights = 2.0 * (4.0 * 256.0 + 2.0 * 16.0 * 64.0) + 16.0 * 20.0;
        assert!((one.seconds.gemm - 6.0 * weights * 24.0 / (50.0 * 24.0 / 34.0)).abs() < 1e-6);
        assert_eq!(one.seconds.optimizer, 120.0 * parameters / 500.0);
        let (slow, _) = predict(1, |_, hardware| hardware.compute.launch_s = 1e6);
        assert_eq!(slow.seconds.optimizer, 14.0 * 1e6);
        assert_eq!((one.seconds.reduce, one.seconds.gather, one.exchange.sent), (0.0, 0.0, 0.0));
        assert!((one.examples_per_s * one.seconds.step() - 4.0).abs() < 1e-9);
        let useful = 24.0 * (6.0 * weights + 12.0 * 16.0 * 2.0 * 6.0);
        assert!((one.mfu - useful / (100.0 * one.seconds.step())).abs() < 1e-12);
        // Four buffers of 4 bytes, at 10 bytes a second.
        assert_eq!(
            (one.checkpoint.bytes, one.checkpoint.write),
            (16.0 * parameters, 16.0 * parameters / 10.0)
        );
    }

    #[test]
    fn more_gpus_share_moments_and_exchange_what_backward_hides_in_part() {
        let (four, parameters) = predict(4, |_, _| {});
        assert_eq!(four.resident.optimizer as f64, 12.0 * parameters / 4.0);
        assert_eq!(four.exchange.sent, 2.0 * 4.0 * parameters * 0.75);
        let whole = 4.0 * parameters * 0.75 / 50.0 + 3.0;
        assert_eq!((four.exchange.reduce, four.exchange.gather), (whole, whole));
        let busy = four.seconds.gemm + four.seconds.attention + four.seconds.traffic;
        // What is not a matrix of a block or of the output is a bucket of its own, which nothing hides: the embedding of 20 tokens
        // of 16 features, norms and biases of two blocks, and the head with its norm, two layers and two classes.
        let exact = 20 * 16 + 2 * (4 * 16 + 64 + 16) + 2 * 16 + (2 * 32 * 16 + 32 + 16) + 2 * 16;
        let last = 4.0 * f64::from(exact) * 0.75 / 50.0 + 3.0;
        let hidden = (whole - last - busy * 2.0 / 3.0).max(0.0);
        assert!((four.seconds.reduce - last - hidden).abs() < 1e-9);
        let hidden = (whole - last - busy / 3.0).max(0.0);
        assert!((four.seconds.gather - last - hidden).abs() < 1e-9);
    }

    #[test]
    fn settings_of_the_exchange_count() {
        let four =
            |change: fn(&mut TrainerConfig)| predict(4, |experiment, _| change(&mut experiment.trainer)).0;
        let (sharded, replicated) = (four(|_| {}), four(|trainer| trainer.shard_optimizer = Some(false)));
        assert_eq!(replicated.exchange.reduce, sharded.exchange.reduce + sharded.exchange.gather);
        assert_eq!((replicated.seconds.gather, replicated.exchange.sent), (0.0, sharded.exchange.sent));
        assert_eq!(replicated.seconds.optimizer, 4.0 * sharded.seconds.optimizer);
        let waiting = four(|trainer| trainer.overlap_reduction = false);
        assert_eq!(waiting.seconds.reduce, waiting.exchange.reduce);
        assert_eq!(waiting.seconds.gather, waiting.exchange.gather);
    }

    #[test]
    fn rows_and_tokens_cut_the_step() {
        let cut = |rows, tokens| {
            let change = |experiment: &mut Experiment, _: &mut Hardware| {
                experiment.per_device_batch_size = rows;
                experiment.trainer.max_tokens_per_micro_batch = tokens;
            };
            predict(1, change).0.micro_batches
        };
        assert_eq!((cut(Some(2), None), cut(None, None), cut(None, Some(7))), (2.0, 1.0, 4.0));
    }

    #[test]
    fn limits_are_named_worst_first() {
        let reasons = |gpus, change: fn(&mut Experiment, &mut Hardware)| {
            let fast_memory = |experiment: &mut Experiment, hardware: &mut Hardware| {
                hardware.memory.bytes_per_s = 1e12;
                change(experiment, hardware);
            };
            let limits = predict(gpus, fast_memory).0.limits;
            assert!(limits.windows(2).all(|pair| pair[0].share >= pair[1].share));
            limits.into_iter().map(|limit| limit.reason).collect::<Vec<_>>()
        };
        let many = reasons(16, |_, _| {});
        assert!(
            many[0].contains("data.canonical_lanes=16") && many[1].contains("GPUs without a row"),
            "{many:?}"
        );
        let small = reasons(1, |_, hardware| hardware.memory.bytes = 1000.0);
        assert!(small[0].starts_with("memory: "), "{small:?}");
        let slow_disk = reasons(1, |experiment, hardware| {
            experiment.checkpoint.every_n_steps = 1;
            hardware.host.write_bytes_per_s = 0.001;
        });
        assert!(slow_disk[0].starts_with("checkpoints: "), "{slow_disk:?}");
        let text = reasons(1, |_, hardware| hardware.host.tokenised_per_s = 1e-6);
        assert!(text[0].contains("ilm-worker prepare"), "{text:?}");
        let slow_memory = reasons(1, |experiment, hardware| {
            experiment.global_batch_size = 400;
            hardware.memory.bytes_per_s = 1e-3;
        });
        assert!(slow_memory[0].starts_with("operations between"), "{slow_memory:?}");
        let launches = reasons(1, |_, hardware| hardware.compute.launch_s = 1e6);
        assert!(launches[0].contains("wait for kernels to start"), "{launches:?}");
        let links = reasons(4, |_, hardware| hardware.links.node_bytes_per_s = 1e-3);
        assert!(links[0].contains("exposed") && links[0].contains("bandwidth"), "{links:?}");
        let hops = reasons(4, |_, hardware| hardware.links.node_latency_s = 1e6);
        assert!(hops[0].contains("exposed") && hops[0].contains("latency"), "{hops:?}");
    }
}
