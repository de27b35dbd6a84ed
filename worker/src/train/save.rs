//! Saving: every rank writes its slice, then rank 0 commits the whole.

use std::collections::BTreeMap;

use checkpoints::{Commit, RunState, ShardRecord, Store, write_shard};

use super::TrainState;
use super::meaning;
use super::sections::StateSection;
use super::state::checkpoint_layout;
use crate::comm::Collectives;
use crate::config::Experiment;

/// What a checkpoint records of a run beside its state.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// Seed of the run.
    pub seed: u64,
    /// Size of the vocabulary.
    pub num_embeddings: u64,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Hash of the resolved configuration.
    pub config_hash: String,
    /// Fingerprint of the training split.
    pub dataset_fingerprint: String,
    /// Settings that decide, with seed and data, which row a data position is.
    pub order: BTreeMap<String, u64>,
    /// Most visible tokens of a micro-batch, which a resumed run must keep to draw the same dropout; none before any.
    pub micro_batch_tokens: Option<u64>,
}

impl RunFacts {
    /// Fingerprint of weights that no data of ours was seen by: any data may follow.
    pub const NO_DATA_YET: &str = "";

    /// The name under which a checkpoint records [`micro_batch_tokens`](Self::micro_batch_tokens).
    pub const MICRO_BATCH_TOKENS: &str = "trainer.max_tokens_per_micro_batch";

    pub(super) fn with_progress(&self, state: &TrainState, world_size: usize) -> RunState {
        let tokens = self.micro_batch_tokens.map(|tokens| (Self::MICRO_BATCH_TOKENS.to_owned(), tokens));
        let meaning = meaning::counters(state.model.shape(), &self.tokenizer);
        let settings = self.order.clone().into_iter().chain(tokens).chain(meaning);
        RunState {
            step: state.step,
            position: state.position,
            seed: self.seed,
            ema_updates: state.ema.as_ref().map_or(0, |ema| ema.num_updates),
            num_embeddings: self.num_embeddings,
            config_hash: self.config_hash.clone(),
            dataset_fingerprint: self.dataset_fingerprint.clone(),
            world_size: world_size as u64,
            counters: settings.chain(state.counters()).collect(),
        }
    }
}

/// Commits a checkpoint of `state`; all ranks call it together and fail together.
///
/// # Errors
/// If any rank cannot write, or a collective fails. Earlier checkpoints stay as they are.
pub fn save(
    store: &mut Store,
    comm: &mut dyn Collectives,
    config: &Experiment,
    facts: &RunFacts,
    state: &TrainState,
) -> anyhow::Result<()> {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let staging = if rank == 0 { store.begin(state.step).map(Some) } else { Ok(None) };
    let staging = together(comm, "checkpoint begin", staging)?;

    let sections = state.sections()?;
    let views: Vec<_> = sections.iter().map(StateSection::view).collect();
    let written = write_shard(&store.staging_dir(state.step), rank, &views);
    let written = together(comm, "checkpoint shards", written);
    let record = match written {
        Ok(record) => record,
        Err(error) => {
            // Space may be what was missing, so the half checkpoint goes; the first error is the one to tell.
            let _ = staging.map(|staging| store.abandon(staging));
            return Err(error);
        }
    };
    let records = gather_records(comm, &record)?;

    let committed = match staging {
        None => Ok(()),
        Some(staging) => {
            let layout = checkpoint_layout(&state.model);
            let (state, config) = (facts.with_progress(state, world_size), config.checkpoint.clone());
            Commit { staging, layout, records, state, config }.run(store).map(drop)
        }
    };
    together(comm, "checkpoint commit", committed)
}

pub(super) fn gather_records(
    comm: &mut dyn Collectives,
    mine: &ShardRecord,
) -> anyhow::Result<Vec<ShardRecord>> {
    let encoded = serde_json::to_vec(mine)?;
    let all = comm.all_gather("checkpoint records", &encoded)?;
    Ok(all.iter().map(|record| serde_json::from_slice(record)).collect::<Result<_, _>>()?)
}

/// The result, unless any rank failed: then all fail alike, with [`SaveFailed`].
pub(super) fn together<T>(
    comm: &mut dyn Collectives,
    name: &'static str,
    result: Result<T, checkpoints::Error>,
) -> anyhow::Result<T> {
    let mine = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let all = comm.all_gather(name, mine.as_bytes())?;
    let Some(rank) = all.iter().position(|message| !message.is_empty()) else { return Ok(result?) };
    let message = String::from_utf8_lossy(&all[rank]);
    let who = if all.len() > 1 { format!("rank {rank}: ") } else { String::new() };
    Err(SaveFailed(format!("{who}{message}")).into())
}

/// A rank could not do its part of a save, so all ranks have given it up; the text is the same on all of them.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SaveFailed(String);
