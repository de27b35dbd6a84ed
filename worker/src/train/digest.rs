//! What a run did, in few numbers: a hash of every step's samples, and a digest chained over all steps.
//!
//! Two runs that did the same have the same digest, to the bit of every loss. The hashes are against mistakes, not malice.

use std::collections::BTreeMap;

use data_pipeline::PackedBatch;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

use super::guard::Skip;

const VALUE: &str = "digest.value";
const SINCE: &str = "digest.since";

/// 64 bits, which JSON cannot write as a number: hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bits(pub u64);

impl Bits {
    /// The bits of a figure; all that are no number are alike.
    pub fn of(figure: f64) -> Self {
        Self(if figure.is_nan() { f64::NAN } else { figure }.to_bits())
    }

    /// The figure of these bits.
    pub fn figure(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl From<Bits> for String {
    fn from(bits: Bits) -> Self {
        format!("{:016x}", bits.0)
    }
}

impl TryFrom<String> for Bits {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

/// A line of `digest.jsonl`: what one step did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDigest {
    /// Number of the step, from 1.
    pub step: u64,
    /// First position of its global batch.
    pub position: u64,
    /// Ranks that computed it.
    pub ranks: u64,
    /// See [`samples_hash`], over all ranks.
    pub samples: Bits,
    /// Mean loss per example.
    pub loss: Bits,
    /// Norm of the mean gradient before clipping.
    pub grad_norm: Bits,
    /// Why the parameters were left as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skip>,
    /// Checksum of the parameters after the step, where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Bits>,
    /// The step that the chain begins after: 0, unless a checkpoint from before there was a chain was resumed.
    pub since: u64,
    /// The digest of all steps since then.
    pub digest: Bits,
}

/// The digest of all steps so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunDigest {
    value: u64,
    since: u64,
}

impl RunDigest {
    /// The chain that begins after `step`, with parameters of this checksum.
    pub fn begin(step: u64, parameters: u64) -> Self {
        Self { value: hash(&[step, parameters]), since: step }
    }

    /// Adds a step, whose `since` and `digest` it fills in.
    pub fn add(&mut self, step: &mut StepDigest) {
        let StepDigest { position, samples, loss, grad_norm, skipped, parameters, .. } = step;
        let skipped = skipped.map_or(0, |skip| 1 + skip as u64);
        let (checked, parameters) = parameters.map_or((0, 0), |bits| (1, bits.0));
        let figures = [*position, samples.0, loss.0, grad_norm.0, skipped, checked, parameters];
        self.value = hash(&[&[self.value, step.step], &figures[..]].concat());
        (step.since, step.digest) = (self.since, Bits(self.value));
    }

    /// What a checkpoint keeps of it.
    pub(super) fn counters(self) -> impl Iterator<Item = (String, u64)> {
        [(VALUE.to_owned(), self.value), (SINCE.to_owned(), self.since)].into_iter()
    }

    /// What a checkpoint kept; none if it was written by a version that knew no digest.
    pub(super) fn from_counters(counters: &BTreeMap<String, u64>) -> Option<Self> {
        Some(Self { value: *counters.get(VALUE)?, since: *counters.get(SINCE)? })
    }
}

/// The sum of a hash of every row: position, epoch, row of the data set, visible tokens and what each gap lost. It does not
/// depend on who computes which row, so the sum over ranks tells of the global batch in its order.
pub fn samples_hash(batches: &[PackedBatch]) -> u64 {
    let mut words = Vec::new();
    let mut sum = 0_u64;
    for batch in batches {
        for (row, sample) in batch.samples().iter().enumerate() {
            let tokens = batch.row(row);
            let ends = &batch.tgt_ptr()[tokens.start..=tokens.end];
            let entries = ends[0] as usize..ends[tokens.len()] as usize;
            words.clear();
            words.extend([sample.position, sample.epoch, sample.row, tokens.len() as u64]);
            words.extend(batch.tokens()[tokens].iter().map(|&id| id as u64));
            words.extend(ends.iter().map(|end| (end - ends[0]) as u64));
            words.extend(batch.tgt_ids()[entries.clone()].iter().map(|&id| id as u64));
            words.extend(batch.tgt_counts()[entries].iter().map(|&count| count as u64));
            sum = sum.wrapping_add(hash(&words));
        }
    }
    sum
}

fn hash(words: &[u64]) -> u64 {
    xxh3_64(words.as_bytes())
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
