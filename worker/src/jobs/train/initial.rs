//! `train --init-from`: weights that a new run starts with; its moments, its step and its data position are new.

use std::path::Path;

use anyhow::bail;
use checkpoints::weights::WeightsFile;
use checkpoints::{Checkpoint, Store};
use ilm_model::Model;

use crate::telemetry;
use crate::train::{check_model, checkpoint_layout, has_average, load_weights};

/// Reads the weights at `path` into a model and says what they are. `path` is a run directory (of which the newest valid
/// checkpoint counts), one checkpoint, or weights in the reference's form; of a checkpoint the averaged weights are taken, if it
/// has any.
///
/// # Errors
/// Nothing of these at `path`, weights of another model or vocabulary, damage.
pub(super) fn read_weights(path: &Path, model: &mut Model, num_embeddings: u64) -> anyhow::Result<String> {
    let Some(checkpoint) = find(path)? else {
        let file = WeightsFile::open(path)?;
        file.check_frequencies(model.shape().config.rotated().unsigned_abs())?;
        let mut values = vec![0.0; model.arena().layout().len()];
        file.read_into(&checkpoint_layout(model).tensors, &mut values)?;
        model.arena_mut().flat_params_mut().write(0..values.len(), &values)?;
        return Ok(format!("the weights of {}", file.path().display()));
    };
    check_model(&checkpoint, &checkpoint_layout(model), num_embeddings)?;
    load_weights(model, &checkpoint, true)?;
    let kind = if has_average(&checkpoint) { "averaged weights" } else { "weights as trained" };
    Ok(format!("the {kind} of {}", checkpoint.dir().display()))
}

/// The checkpoint at `path`, if there is one.
fn find(path: &Path) -> anyhow::Result<Option<Checkpoint>> {
    if Checkpoint::is_at(path) {
        return Ok(Some(Checkpoint::open(path)?));
    }
    if !path.join("checkpoints").is_dir() {
        return Ok(None);
    }
    let found = Store::open(path)?.newest_valid()?;
    for (path, reason) in &found.rejected {
        telemetry::warn(&format!("passing over checkpoint {}: {reason}", path.display()));
    }
    match found.checkpoint {
        None => bail!("--init-from {} is a run directory without a valid checkpoint", path.display()),
        found => Ok(found),
    }
}
