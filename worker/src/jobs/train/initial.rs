//! `train --init-from`: weights that a new run starts with; its moments, its step and its data position are new.

use std::path::Path;

use checkpoints::weights::WeightsFile;
use checkpoints::{Checkpoint, Store};
use data_pipeline::Tokenizer;
use ilm_model::{Model, ModelShape};

use crate::telemetry;
use crate::train::{
    NoCheckpoint, check_model, check_network, checkpoint_layout, has_average, has_tokenizer, load_weights,
    network_settings,
};

/// Reads the weights at `path` into a model and says what they are. `path` is a run directory (of which the newest valid
/// checkpoint counts), one checkpoint, or weights in the reference's form; of a checkpoint the averaged weights are taken, if it
/// has any.
///
/// # Errors
/// Nothing of these at `path`, weights of another model or vocabulary, damage. Another vocabulary of the same size may be
/// wanted, and is warned of where a checkpoint tells.
pub(super) fn read_weights(path: &Path, model: &mut Model, tokenizer: &Tokenizer) -> anyhow::Result<String> {
    let Some(checkpoint) = find(path)? else {
        let file = WeightsFile::open(path)?;
        file.check_frequencies(model.shape().config.rotated().unsigned_abs())?;
        let mut values = vec![0.0; model.arena().layout().len()];
        file.read_into(&checkpoint_layout(model).tensors, &mut values)?;
        check_arguments(&file, model.shape())?;
        model.arena_mut().flat_params_mut().write(0..values.len(), &values)?;
        return Ok(format!("the weights of {}", file.path().display()));
    };
    check_model(&checkpoint, model)?;
    if !has_tokenizer(&checkpoint, tokenizer) {
        telemetry::warn(&format!(
            "the weights of {} were trained with another tokenizer of as many tokens: an id may mean another token now",
            checkpoint.dir().display()
        ));
    }
    load_weights(model, &checkpoint, true)?;
    let kind = if has_average(&checkpoint) { "averaged weights" } else { "weights as trained" };
    Ok(format!("the {kind} of {}", checkpoint.dir().display()))
}

/// Whether the arguments that lie beside weights, if any do, are those of a network like the model.
fn check_arguments(file: &WeightsFile, shape: &ModelShape) -> anyhow::Result<()> {
    let Some(mut given) = file.config()? else { return Ok(()) };
    // The only one without a default; if it is not there, nothing contradicts ours.
    given.nhead.get_or_insert(shape.config.nhead.unsigned_abs());
    let recorded = network_settings(&file.architecture(&given)?);
    Ok(check_network(file.path().display().to_string(), &recorded, shape)?)
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
    let checkpoint = found.checkpoint.ok_or_else(|| NoCheckpoint { run_dir: path.to_owned() })?;
    Ok(Some(checkpoint))
}
