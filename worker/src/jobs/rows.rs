//! A rank's batch of one step for people and for programs: which samples it holds, their texts and what was dropped.

use std::fmt::Write as _;
use std::path::Path;

use data_pipeline::{DescribeOptions, PackedBatch, Tokenizer, describe_batch};
use serde::Serialize;

use crate::run_dir::{RunDirError, replace_file};

/// What one rank computes in one step.
pub(super) struct RankBatch<'a> {
    pub(super) step: u64,
    pub(super) rank: usize,
    pub(super) micro_batches: &'a [PackedBatch],
    pub(super) tokenizer: &'a Tokenizer,
}

/// One row.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    step: u64,
    rank: usize,
    micro_batch: usize,
    row: usize,
    /// Row of the data set.
    sample: u64,
    epoch: u64,
    position: u64,
    /// Ids of the visible tokens.
    tokens: Vec<i64>,
    /// What they say.
    text: String,
    gaps: Vec<Gap>,
}

/// Tokens that were dropped directly right of a visible one.
#[derive(Debug, Serialize)]
struct Gap {
    /// Index of the visible token within the row.
    after: usize,
    /// Distinct, ascending.
    ids: Vec<i64>,
    /// How often each was dropped.
    counts: Vec<i64>,
    /// What the ids say.
    texts: Vec<String>,
}

impl RankBatch<'_> {
    /// The batch as text; only one micro-batch if `only` says so.
    pub(super) fn describe(&self, only: Option<usize>) -> String {
        let everything =
            DescribeOptions { rows: usize::MAX, tokens: usize::MAX, gap_ids: usize::MAX, color: false };
        let mut text = String::new();
        for (index, batch) in self.chosen(only) {
            let _ = writeln!(
                text,
                "step {}, rank {}, micro-batch {index} of {}: {}",
                self.step,
                self.rank,
                self.micro_batches.len(),
                describe_batch(batch, self.tokenizer, &everything)
            );
        }
        text
    }

    /// The batch as JSON, a row a line.
    ///
    /// # Errors
    /// None in practice.
    pub(super) fn json_lines(&self, only: Option<usize>) -> serde_json::Result<String> {
        let mut text = String::new();
        for (index, batch) in self.chosen(only) {
            for row in 0..batch.rows() {
                text += &serde_json::to_string(&self.row(index, batch, row))?;
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// Writes both into a folder: `rank-K.txt` and `rank-K.jsonl`.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn write(&self, folder: &Path) -> Result<(), RunDirError> {
        let file = |extension: &str| folder.join(format!("rank-{}.{extension}", self.rank));
        replace_file(&file("txt"), &self.describe(None))?;
        let path = file("jsonl");
        let lines = self.json_lines(None).map_err(std::io::Error::from);
        replace_file(&path, &lines.map_err(RunDirError::new("write", &path))?)
    }

    fn chosen(&self, only: Option<usize>) -> impl Iterator<Item = (usize, &PackedBatch)> {
        self.micro_batches.iter().enumerate().filter(move |(index, _)| only.is_none_or(|only| only == *index))
    }

    fn row(&self, micro_batch: usize, batch: &PackedBatch, row: usize) -> Row {
        let key = batch.samples()[row];
        let range = batch.row(row);
        let tokens = batch.tokens()[range.clone()].to_vec();
        Row {
            step: self.step,
            rank: self.rank,
            micro_batch,
            row,
            sample: key.row,
            epoch: key.epoch,
            position: key.position,
            text: self.decode(&tokens),
            tokens,
            gaps: range.clone().filter_map(|token| self.gap(batch, token, token - range.start)).collect(),
        }
    }

    fn gap(&self, batch: &PackedBatch, token: usize, after: usize) -> Option<Gap> {
        let entries = batch.gap(token);
        let ids = batch.tgt_ids()[entries.clone()].to_vec();
        let texts = ids.iter().map(|id| self.decode(std::slice::from_ref(id))).collect();
        let counts = batch.tgt_counts()[entries].to_vec();
        (!ids.is_empty()).then_some(Gap { after, ids, counts, texts })
    }

    fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, false)
    }
}
