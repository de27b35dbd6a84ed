//! Which decision a run breaks at first on so many GPUs, and what to change.

use data_pipeline::config::Task;
use serde::Serialize;

use super::hardware::Hardware;
use super::prediction::{Prediction, Subject, gemm_efficiency};

/// Losses below this share of a step are not worth a word.
const LEAST_SHARE: f64 = 0.05;

/// Something that limits a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// The share of the time that is lost to it; 1 if the run cannot be at all.
    pub share: f64,
    /// What it is and what would help, in words.
    pub reason: String,
}

/// All limits worth a word, worst first.
pub(super) fn of(prediction: &Prediction, subject: &Subject, hardware: &Hardware) -> Vec<Limit> {
    let mut limits = hard(prediction, subject, hardware);
    limits.extend(computing(prediction, hardware));
    limits.extend(exchanging(prediction, subject));
    limits.extend(around(prediction, subject, hardware));
    limits.retain(|limit| limit.share >= LEAST_SHARE);
    limits.sort_by(|a, b| b.share.total_cmp(&a.share));
    limits
}

/// What makes a run impossible.
fn hard(prediction: &Prediction, subject: &Subject, hardware: &Hardware) -> Vec<Limit> {
    let mut reasons = Vec::new();
    let (gpus, experiment) = (prediction.gpus, subject.experiment);
    let lanes = experiment.data.canonical_lanes;
    if gpus > lanes as u64 {
        reasons.push(format!(
            "refused: more ranks than data.canonical_lanes = {lanes}; begin the run with data.canonical_lanes={gpus}"
        ));
    }
    if gpus > experiment.global_batch_size as u64 {
        reasons.push(format!(
            "GPUs without a row: raise global_batch_size = {} to at least {gpus}",
            experiment.global_batch_size
        ));
    }
    if prediction.memory() > hardware.memory.bytes {
        reasons.push(format!(
            "memory: {:.0} GB are needed and {:.0} there; trainer.recompute=blocks, or a smaller model",
            prediction.memory() / 1e9,
            hardware.memory.bytes / 1e9
        ));
    }
    reasons.into_iter().map(|reason| Limit { share: 1.0, reason }).collect()
}

/// What keeps a GPU from computing at its rate.
fn computing(prediction: &Prediction, hardware: &Hardware) -> Vec<Limit> {
    let Prediction { seconds, tokens, micro_batches, fullest_tokens, .. } = prediction;
    let step = seconds.step();
    let per_micro_batch = tokens / micro_batches;
    let reached = gemm_efficiency(hardware, per_micro_batch) / hardware.compute.gemm_efficiency;
    let more = if *micro_batches > 1.0 { "per_device_batch_size" } else { "global_batch_size" };
    vec![
        Limit {
            share: (seconds.gemm * (1.0 - reached) + seconds.launches) / step,
            reason: format!(
                "small micro-batches: {per_micro_batch:.0} tokens keep products at {:.0} % of their rate{}; raise {more}",
                reached * 100.0,
                if seconds.launches > 0.0 { " and wait for kernels to start" } else { "" },
            ),
        },
        Limit {
            share: seconds.traffic / step,
            reason: "operations between the products, which libtorch runs one by one and memory bounds; only kernels of our own \
                     would be faster"
                .to_owned(),
        },
        Limit {
            share: seconds.uneven / step,
            reason: format!(
                "uneven rows: the fullest GPU has {:.1} times the mean tokens; raise global_batch_size",
                fullest_tokens / tokens
            ),
        },
    ]
}

/// Communication that nothing hides.
fn exchanging(prediction: &Prediction, subject: &Subject) -> Vec<Limit> {
    let Prediction { seconds, exchange, .. } = prediction;
    let step = seconds.step();
    let remedy = if exchange.latency > (exchange.reduce + exchange.gather) / 2.0 {
        let bucket = subject.experiment.trainer.reduce_bucket_mib;
        format!("mostly latency of many buckets; raise trainer.reduce_bucket_mib = {bucket}")
    } else {
        "mostly bandwidth; raise global_batch_size".to_owned()
    };
    vec![
        Limit { share: seconds.reduce / step, reason: format!("exposed reduction of gradients: {remedy}") },
        Limit { share: seconds.gather / step, reason: format!("exposed all-gather of parameters: {remedy}") },
        Limit {
            share: seconds.optimizer / step,
            reason: "the optimizer, whose kernels are many and small: raise global_batch_size or trainer.reduce_bucket_mib".to_owned(),
        },
    ]
}

/// Data and checkpoints, which must keep up with the steps.
fn around(prediction: &Prediction, subject: &Subject, hardware: &Hardware) -> Vec<Limit> {
    let needed = prediction.source_tokens_per_s;
    let threads = subject.experiment.data.threads.max(1) as f64;
    let made = if subject.experiment.data.task == Task::Text {
        threads * hardware.host.tokenised_per_s
    } else {
        needed
    };
    let checkpoint = &prediction.checkpoint;
    vec![
        Limit {
            share: 1.0 - made / needed,
            reason: format!(
                "tokenising while training: a rank needs {:.1} million tokens a second and data.threads = {threads} make \
                 {:.1}; use `ilm-worker prepare` first",
                needed / 1e6,
                made / 1e6
            ),
        },
        Limit {
            share: 1.0 - checkpoint.interval / checkpoint.write,
            reason: format!(
                "checkpoints: one takes {:.0} s to write, and the next is due after {:.0} s; raise checkpoint.every_n_steps",
                checkpoint.write, checkpoint.interval
            ),
        },
    ]
}
