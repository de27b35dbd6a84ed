//! Resuming: which checkpoint is taken, and whether it fits the run that asks for it.

use std::path::PathBuf;

use anyhow::Context;
use checkpoints::{Checkpoint, Store};
use ilm_model::Model;

use super::meaning::check_network;
use super::save::RunFacts;
use super::state::checkpoint_layout;
use crate::comm::{Buffer, Collectives};

/// A checkpoint belongs to another run than the one that would go on from it.
#[derive(Debug, thiserror::Error)]
pub enum Incompatible {
    /// The vocabulary has another size.
    #[error(
        "checkpoint {checkpoint} was trained with {saved} tokens, but the tokenizer has {now}: use the tokenizer of \
         that run, or start a new run directory"
    )]
    Vocabulary {
        /// The checkpoint.
        checkpoint: String,
        /// Its vocabulary.
        saved: u64,
        /// This run's.
        now: u64,
    },
    /// There are checkpoints, but none can be trusted.
    #[error(
        "no checkpoint is valid, the newest being {newest} (the log says why): start anew with --fresh, which keeps the \
         damaged ones"
    )]
    NoneValid {
        /// The newest one.
        newest: String,
    },
    /// The seed differs, so the samples would be others.
    #[error("checkpoint {checkpoint} belongs to seed {saved}, not {now}: a resumed run must keep its seed")]
    Seed {
        /// The checkpoint.
        checkpoint: String,
        /// Its seed.
        saved: u64,
        /// This run's.
        now: u64,
    },
    /// The rows are in another order.
    #[error(
        "checkpoint {checkpoint} was trained with {key} = {saved}, not {now}: a resumed run must keep the order of its data; \
         set it back, or start a new run directory"
    )]
    Order {
        /// The checkpoint.
        checkpoint: String,
        /// The setting.
        key: String,
        /// Its value then (true is 1).
        saved: u64,
        /// Its value now.
        now: u64,
    },
    /// The training data differs, so the samples would be others.
    #[error(
        "the training data is not that of checkpoint {checkpoint}: {change}; give the same data, start a new run directory, \
         or set data.allow_changed=true to go on at the same position of the new data"
    )]
    Data {
        /// The checkpoint.
        checkpoint: String,
        /// What is different.
        change: String,
    },
}

/// Whether a run with these facts goes on with the same samples.
///
/// # Errors
/// The first difference.
pub fn check_run(checkpoint: &Checkpoint, facts: &RunFacts) -> Result<(), Incompatible> {
    let saved = checkpoint.state();
    let name = || checkpoint.dir().display().to_string();
    if saved.seed != facts.seed {
        return Err(Incompatible::Seed { checkpoint: name(), saved: saved.seed, now: facts.seed });
    }
    for (key, now) in &facts.order {
        if let Some(saved) = saved.counters.get(key).filter(|saved| *saved != now) {
            return Err(Incompatible::Order {
                checkpoint: name(),
                key: key.clone(),
                saved: *saved,
                now: *now,
            });
        }
    }
    let has_seen_data = saved.dataset_fingerprint != RunFacts::NO_DATA_YET;
    if has_seen_data && saved.dataset_fingerprint != facts.dataset_fingerprint {
        let change =
            format!("its fingerprint was {} and is {}", saved.dataset_fingerprint, facts.dataset_fingerprint);
        return Err(Incompatible::Data { checkpoint: name(), change });
    }
    Ok(())
}

/// Whether `checkpoint` holds the parameters of such a model: vocabulary, layout, and the settings that neither shows.
///
/// # Errors
/// The first difference.
pub fn check_model(checkpoint: &Checkpoint, model: &Model) -> anyhow::Result<()> {
    let (state, shape) = (checkpoint.state(), model.shape());
    let name = checkpoint.dir().display().to_string();
    let (saved, now) = (state.num_embeddings, shape.num_embeddings.unsigned_abs());
    if saved != now {
        return Err(Incompatible::Vocabulary { checkpoint: name, saved, now }.into());
    }
    checkpoint.require_layout(&checkpoint_layout(model))?;
    Ok(check_network(format!("checkpoint {name}"), &state.counters, shape)?)
}

/// A run directory has nothing to begin with.
#[derive(Debug, thiserror::Error)]
#[error("{} holds no valid checkpoint; name the folder of a run that has saved one", run_dir.display())]
pub struct NoCheckpoint {
    /// The run directory.
    pub run_dir: PathBuf,
}

/// The newest valid checkpoint, or the one of `step`; the same on all ranks. Rank 0 verifies, the others follow it.
/// `warn` is told which ones were passed over and why.
///
/// # Errors
/// If a wanted checkpoint is missing or damaged, the newest one cannot be read though nothing says that it is damaged, or a collective
/// fails.
pub fn find_checkpoint(
    store: &Store,
    comm: &mut dyn Collectives,
    step: Option<u64>,
    warn: &mut dyn FnMut(&str),
) -> anyhow::Result<Option<Checkpoint>> {
    const NONE: f64 = -1.0;
    let mut chosen = [NONE];
    let mut found = None;
    if comm.rank() == 0 {
        found = match step {
            Some(step) => Some(store.get(step)?),
            None => {
                let newest = store.newest_valid()?;
                for (path, reason) in &newest.rejected {
                    warn(&format!("passing over checkpoint {}: {reason}", path.display()));
                }
                if let (None, Some((path, _))) = (&newest.checkpoint, newest.rejected.first()) {
                    return Err(Incompatible::NoneValid { newest: path.display().to_string() }.into());
                }
                newest.checkpoint
            }
        };
        chosen[0] = found.as_ref().map_or(NONE, |checkpoint| checkpoint.state().step as f64);
    }
    comm.broadcast("checkpoint choice", Buffer::F64(&mut chosen))?;
    if comm.rank() > 0 && chosen[0] != NONE {
        let step = chosen[0] as u64;
        found = Some(
            store
                .get(step)
                .with_context(|| format!("rank 0 can read checkpoint {step}, this rank cannot"))?,
        );
    }
    Ok(found)
}
