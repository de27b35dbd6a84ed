//! What every job on a finished or running run's checkpoint begins with: the run's configuration, and a model with its weights.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use checkpoints::{Checkpoint, RunState, Store};
use ilm_model::Model;
use serde::Serialize;

use crate::assembly::Assembly;
use crate::cli::CheckpointArgs;
use crate::comm::{Collectives, CommError, LaunchEnv, connect};
use crate::config::{self, Experiment};
use crate::device::RankDevice;
use crate::run_dir::RunDir;
use crate::signals::StopRequest;
use crate::train::{NoCheckpoint, check_model, check_tokenizer, find_checkpoint, has_average, load_weights};
use crate::{telemetry, threads, vitals};

/// A run, opened before the ranks connect.
pub(super) struct Offline<'a> {
    args: &'a CheckpointArgs,
    step: Option<u64>,
    launch: Option<LaunchEnv>,
    pub(super) run_dir: RunDir,
    pub(super) config: Experiment,
    pub(super) assembly: Assembly,
}

/// A model and where its weights are from.
pub(super) struct Loaded {
    pub(super) model: Model,
    /// Where the run stood.
    pub(super) run: RunState,
    pub(super) weights: Weights,
}

/// Which weights of a checkpoint were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Weights {
    /// As the optimizer left them.
    Trained,
    /// Their moving average.
    Averaged,
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trained => "weights as trained",
            Self::Averaged => "averaged weights",
        })
    }
}

impl<'a> Offline<'a> {
    /// Reads and checks the run's configuration and opens its tokenizer.
    pub(super) fn open(args: &'a CheckpointArgs) -> anyhow::Result<Self> {
        let (run_dir, step) = place_of(args)?;
        let run_dir = RunDir::new(run_dir);
        let config = config::load_run(&run_dir.config(), &args.overrides)?.experiment;
        config::validate::settings(&config)?;
        let assembly = Assembly::open(&config)?;
        Ok(Self { args, step, launch: LaunchEnv::detect(), run_dir, config, assembly })
    }

    /// This process and all processes, before they are connected.
    pub(super) fn rank_and_world_size(&self) -> (usize, usize) {
        self.launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size))
    }

    pub(super) fn connect(&self) -> Result<Box<dyn Collectives>, CommError> {
        let timeout = Duration::from_secs(self.config.trainer.collective_timeout_secs);
        connect(self.launch.as_ref(), timeout)
    }

    /// Shows in the run directory that the job is alive, unless the run itself does so there, and shares requests to stop.
    pub(super) fn show_life(&self, comm: &mut dyn Collectives, stop: &StopRequest) {
        comm.share_stop(stop);
        vitals::attach_unless_taken(self.run_dir.path(), comm.rank(), comm.world_size());
    }

    /// Builds the model and reads the weights that the arguments ask for.
    pub(super) fn load(&self, comm: &mut dyn Collectives) -> anyhow::Result<Loaded> {
        threads::set_threads(threads::threads_per_rank(comm, self.config.trainer.threads)?);
        let device = RankDevice::select(comm, &self.config.trainer)?;
        let mut model = self.assembly.build_model(&self.config, device.device())?;
        let checkpoint = self.checkpoint(comm)?;
        check_model(&checkpoint, &model)?;
        check_tokenizer(&checkpoint, &self.run_dir, &self.config, &self.assembly.tokenizer)?;
        if self.args.ema && !has_average(&checkpoint) {
            bail!("checkpoint {} has no moving average; leave --ema out", checkpoint.dir().display());
        }
        let averaged = has_average(&checkpoint) && !self.args.raw_weights;
        load_weights(&mut model, &checkpoint, averaged)?;
        let weights = if averaged { Weights::Averaged } else { Weights::Trained };
        Ok(Loaded { model, run: checkpoint.state().clone(), weights })
    }

    /// Whether the weights as trained were asked for, though there may be an average.
    pub(super) fn wants_raw_weights(&self) -> bool {
        self.args.raw_weights
    }

    fn checkpoint(&self, comm: &mut dyn Collectives) -> anyhow::Result<Checkpoint> {
        let store = Store::open(self.run_dir.path())?;
        let found = find_checkpoint(&store, comm, self.step, &mut telemetry::warn)?;
        Ok(found.ok_or_else(|| NoCheckpoint { run_dir: self.run_dir.path().to_owned() })?)
    }
}

/// The run directory, and the step of the checkpoint unless it is the newest.
fn place_of(args: &CheckpointArgs) -> anyhow::Result<(PathBuf, Option<u64>)> {
    if let Some(checkpoint) = &args.checkpoint {
        let name =
            checkpoint.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
        let step = name.and_then(|step| step.parse().ok());
        let run_dir = checkpoint.parent().and_then(Path::parent);
        return match (run_dir, step) {
            (Some(run_dir), Some(step)) => Ok((run_dir.to_owned(), Some(step))),
            _ => bail!("--checkpoint {} is not a folder RUN/checkpoints/step-N", checkpoint.display()),
        };
    }
    let default = || format!("runs/{}", args.experiment.as_deref().unwrap_or_default()).into();
    Ok((args.run_dir.clone().unwrap_or_else(default), args.step))
}
