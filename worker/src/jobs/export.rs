//! `ilm-worker export`: the weights of a checkpoint in the reference's form.

use checkpoints::weights::{ReferenceConfig, RotaryBuffers, write_weights};

use super::offline::Offline;
use crate::cli::{BuffersArg, ExportArgs};
use crate::comm::Collectives;
use crate::say;
use crate::{exit, reference};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn export(args: &ExportArgs) -> anyhow::Result<i32> {
    let offline = Offline::open(&args.checkpoint)?;
    let (rank, world_size) = offline.rank_and_world_size();
    let mut comm = offline.connect()?;
    run(args, &offline, &mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

fn run(args: &ExportArgs, offline: &Offline<'_>, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
    let loaded = offline.load(comm)?;
    if comm.rank() > 0 {
        return Ok(exit::OK);
    }
    let mask = offline.assembly.tokenizer.special().mask;
    let architecture = reference::architecture(loaded.model.shape(), mask);
    let layout = crate::train::checkpoint_layout(&loaded.model);
    let buffers = match args.buffers {
        BuffersArg::FirstLayer => RotaryBuffers::FirstLayer,
        BuffersArg::EveryLayer => RotaryBuffers::EveryLayer,
    };
    let config = ReferenceConfig::of(&architecture);
    let params = loaded.model.arena().flat_params();
    let mut held = vec![0.0; params.len()];
    params.read(0..held.len(), &mut held)?;
    let file = write_weights(&args.to, &layout, &held, &config, buffers)?;
    say!("step {}, {} of a {}", loaded.run.step, loaded.weights, architecture.class.name());
    say!("written to {}", file.display());
    Ok(exit::OK)
}
