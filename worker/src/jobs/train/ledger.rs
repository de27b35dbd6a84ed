//! What rank 0 leaves behind of every step so that it can be checked and computed again: `digest.jsonl`, `skipped.jsonl`.

use data_pipeline::{GlobalOrder, StepBatch};
use serde::Serialize;

use super::data::TrainingData;
use crate::json_lines::JsonLines;
use crate::run_dir::RunDir;
use crate::train::{Skip, StepDigest, StepFigures};

/// The files of a run that tell of its steps.
pub(super) struct Ledger {
    digest: JsonLines,
    skipped: JsonLines,
    order: GlobalOrder,
}

/// A line of `skipped.jsonl`. Figures that are no numbers are null.
#[derive(Debug, Serialize)]
struct SkippedStep {
    step: u64,
    reason: Skip,
    loss: f64,
    grad_norm: f64,
    /// First position of the global batch, and the one after it.
    position: u64,
    next_position: u64,
    /// Rows of the data set in the order of their positions, those of all ranks.
    samples: Vec<u64>,
}

impl Ledger {
    /// Opens both files and removes what they say of steps after `step`, which will be run again.
    ///
    /// # Errors
    /// If the disk refuses, or the data has no order.
    pub(super) fn open(run_dir: &RunDir, data: TrainingData<'_>, step: u64) -> anyhow::Result<Self> {
        Ok(Self {
            digest: JsonLines::open(run_dir.digest(), step)?,
            skipped: JsonLines::open(run_dir.skipped(), step)?,
            order: data.order()?,
        })
    }

    /// Writes down a finished step.
    pub(super) fn write(&mut self, digest: &StepDigest, batch: &StepBatch, figures: &StepFigures) {
        if let Some(reason) = figures.skipped {
            let keys = self.order.keys(batch.position..batch.next_position);
            self.skipped.note(&SkippedStep {
                step: digest.step,
                reason,
                loss: figures.loss(),
                grad_norm: figures.grad_norm,
                position: batch.position,
                next_position: batch.next_position,
                samples: keys.map(|key| key.row).collect(),
            });
        }
        self.digest.note(digest);
    }
}
