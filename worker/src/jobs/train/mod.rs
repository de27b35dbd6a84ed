//! `ilm-worker train`: from a configuration to a trained model, in as many starts as it takes.

mod data;
mod initial;
mod ledger;
mod saves;
mod site;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use checkpoints::{Checkpoint, Store};
use data_pipeline::{DataConfig, Dataset, DatasetManifest, Split};
use ilm_model::Precision;

use super::shared_rows::assert_same_rows;
use crate::assembly::Assembly;
use crate::cli::TrainArgs;
use crate::comm::{Collectives, LaunchEnv, assert_equal, connect};
use crate::config::{self, Experiment, Resolved};
use crate::exit;
use crate::run_dir::{RunDir, replace_file};
use crate::say;
use crate::signals::StopRequest;
use crate::telemetry::{self, Banner};
use crate::train::{
    Incompatible, Reducer, RunDigest, RunFacts, Saver, TokenLimit, TrainState, check_model, check_run,
    check_tokenizer, find_checkpoint, recorded_tokens,
};
use crate::vitals;
use saves::Saves;
use steps::Steps;

pub(super) use data::TrainingData;
pub(super) use site::Site;

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn train(args: &TrainArgs) -> anyhow::Result<i32> {
    // First, so that a signal during the start is not lost: it is answered before the first step.
    let mut signals = StopRequest::install()?;
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    let resolved = config::load(
        &args.experiment.experiment,
        &args.experiment.overrides,
        args.experiment.config_dir.config_dir.as_deref(),
    )?;
    let experiment = &resolved.experiment;
    signals.listen_to(&experiment.trainer.stop_signals)?;
    let stop = signals.request();
    for warning in config::validate::training(experiment, world_size)? {
        if rank == 0 {
            telemetry::warn(&warning);
        }
    }
    let assembly = Assembly::open(experiment)?;
    let run_dir =
        args.run_dir.clone().unwrap_or_else(|| format!("runs/{}", args.experiment.experiment).into());
    let run_dir = RunDir::new(run_dir);
    let open = |split: Split| {
        // A dry run writes nothing.
        let index = (!args.dry_run).then(|| run_dir.index(split.name()));
        assembly.open_split_with(experiment, split, index.as_deref())
    };
    let dataset = open(Split::Train)?;
    let validates =
        experiment.trainer.val_check_interval.is_some() && Assembly::has_split(experiment, Split::Validation);
    let validation = validates.then(|| open(Split::Validation)).transpose()?;

    let timeout = Duration::from_secs(experiment.trainer.collective_timeout_secs);
    let mut comm = connect(launch.as_ref(), timeout)?;
    let run = Run { args, resolved: &resolved, assembly, dataset, validation, run_dir, stop };
    run.start(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// What a checkpoint keeps of section `data` because a data position means other rows without it.
fn order_settings(data: &DataConfig) -> BTreeMap<String, u64> {
    let settings = [
        ("data.canonical_lanes", data.canonical_lanes as u64),
        ("data.shuffle", u64::from(data.shuffle)),
        ("data.window_groups", data.window_groups as u64),
    ];
    settings.map(|(key, value)| (key.to_owned(), value)).into()
}

/// What a checkpoint of a run with these settings records of it.
pub(super) fn facts(resolved: &Resolved, assembly: &Assembly, dataset: &dyn Dataset) -> RunFacts {
    let config = &resolved.experiment;
    RunFacts {
        seed: config.seed,
        num_embeddings: assembly.tokenizer.vocab_size() as u64,
        tokenizer: assembly.tokenizer.fingerprint(),
        config_hash: resolved.hash(),
        dataset_fingerprint: dataset.fingerprint().to_string(),
        order: order_settings(&config.data),
        micro_batch_tokens: None,
    }
}

/// Everything of a run that was opened before the ranks connected.
struct Run<'a> {
    args: &'a TrainArgs,
    resolved: &'a Resolved,
    assembly: Assembly,
    dataset: Arc<dyn Dataset>,
    validation: Option<Arc<dyn Dataset>>,
    run_dir: RunDir,
    stop: StopRequest,
}

impl Run<'_> {
    fn config(&self) -> &Experiment {
        &self.resolved.experiment
    }

    fn data(&self) -> TrainingData<'_> {
        TrainingData { config: self.config(), assembly: &self.assembly, dataset: &self.dataset }
    }

    fn start(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        comm.share_stop(&self.stop);
        let (rank, world_size) = (comm.rank(), comm.world_size());
        self.agree_on_data(comm)?;
        let mut site = Site::set_up(comm, self.config(), &self.assembly)?;
        if self.args.dry_run {
            if rank == 0 {
                say!("{}", self.banner(&site, site.limit(self.config(), None), world_size));
            }
            return Ok(exit::OK);
        }

        let initial = self.read_initial_weights(rank, &mut site.state)?;
        let store = self.open_run_dir(comm)?;
        vitals::attach(self.run_dir.path(), rank, world_size);
        let mut facts = facts(self.resolved, &self.assembly, &*self.dataset);
        let resumed = self.resume(&store, comm, &facts, &mut site.state)?;
        let limit = site.limit(self.config(), resumed.as_ref().and_then(recorded_tokens));
        facts.micro_batch_tokens = Some(limit.tokens as u64);
        self.agree_on_parameters(comm, resumed.is_some(), &mut site.state)?;
        if rank == 0 {
            replace_file(&self.run_dir.config(), &self.resolved.render())?;
            replace_file(&self.run_dir.dataset(), &serde_json::to_string_pretty(&self.dataset.manifest())?)?;
        }
        let banner = self.banner(&site, limit, world_size);
        let Site { device, mut state, .. } = site;
        let tokens = config::validate::micro_batch_limit(self.config(), Some(limit.tokens));
        let plan = config::validate::batch_plan(self.config(), tokens, comm.rank(), world_size)?;
        let saver = Saver::new(store, facts, comm, self.config(), &state)?;
        // SAFETY: the state outlives the steps, and a step goes by the rules that the reducer sets.
        let reducer =
            unsafe { Reducer::connect(&device, comm, &self.config().trainer, state.model.arena())? };
        if rank == 0 {
            say!("{}", banner.line("exchange", reducer.describe()));
            initial.iter().for_each(|weights| say!("starting from {weights}"));
            limit.warning().iter().for_each(|warning| telemetry::warn(warning));
        }
        let saves = Saves::since(state.step);
        let mut steps = Steps { run: self, plan, comm, reducer, saver, saves };
        // A rank that fails ends its peers here, while the exchange may still have something under way.
        steps.run(&mut state).or_else(|error| exit::fail(&error, rank, world_size))
    }

    /// Creates the run directory on rank 0, moving an older run aside if told to.
    fn open_run_dir(&self, comm: &mut dyn Collectives) -> anyhow::Result<Store> {
        if comm.rank() == 0 {
            self.run_dir.create()?;
            if self.args.fresh {
                self.start_anew()?;
            }
        }
        comm.barrier("run directory")?;
        let mut store = Store::open(self.run_dir.path())?;
        if comm.rank() == 0 {
            store.remove_stale()?;
        }
        // Nobody writes there before it is certain that no other run does.
        comm.barrier("run directory is ours")?;
        Ok(store)
    }

    /// Moves an older run aside, unless it is still running.
    fn start_anew(&self) -> anyhow::Result<()> {
        // Refused while another process holds the store; the hold ends with this statement.
        Store::open(self.run_dir.path())?.remove_stale()?;
        if let Some(aside) = self.run_dir.set_aside()? {
            say!("moved the earlier run to {}", aside.display());
        }
        Ok(())
    }

    /// On rank 0 of a new run, reads the weights that it starts from, before anything is written or moved aside; says what they
    /// are. A run that was begun goes on from its own checkpoint, so the same command line starts it again after a crash.
    fn read_initial_weights(&self, rank: usize, state: &mut TrainState) -> anyhow::Result<Option<String>> {
        let Some(path) = self.args.init_from.as_deref().filter(|_| rank == 0) else { return Ok(None) };
        if !self.args.fresh && !Store::open(self.run_dir.path())?.list()?.is_empty() {
            say!("--init-from is for a new run and is left aside: this run directory holds checkpoints");
            return Ok(None);
        }
        initial::read_weights(path, &mut state.model, &self.assembly.tokenizer).map(Some)
    }

    /// Proves that a data position means the same rows and a setting the same on all ranks: hosts may see other files.
    fn agree_on_data(&self, comm: &mut dyn Collectives) -> anyhow::Result<()> {
        assert_equal(comm, "settings", self.resolved.hash())?;
        assert_same_rows(comm, "training data", &*self.dataset)?;
        self.validation.as_ref().map_or(Ok(()), |rows| assert_same_rows(comm, "validation data", &**rows))
    }

    /// Gives all ranks the parameters of rank 0, and proves it; the digest of a run begins with them.
    fn agree_on_parameters(
        &self,
        comm: &mut dyn Collectives,
        resumed: bool,
        state: &mut TrainState,
    ) -> anyhow::Result<()> {
        state.broadcast_parameters(comm)?;
        if self.args.init_from.is_some() && !resumed {
            state.restart_average()?;
        }
        let checksum = state.parameter_checksum()?;
        assert_equal(comm, "parameters", format_args!("{checksum:016x}"))?;
        state.digest.get_or_insert(RunDigest::begin(state.step, checksum));
        Ok(())
    }

    /// Goes on from the newest checkpoint, if there is one.
    fn resume(
        &self,
        store: &Store,
        comm: &mut dyn Collectives,
        facts: &RunFacts,
        state: &mut TrainState,
    ) -> anyhow::Result<Option<Checkpoint>> {
        let Some(checkpoint) = find_checkpoint(store, comm, None, &mut telemetry::warn)? else {
            return Ok(None);
        };
        check_model(&checkpoint, &state.model)?;
        self.check_run(&checkpoint, facts, comm.rank())?;
        // Once there is data, its fingerprint tells of the tokenizer, and a person may allow another one.
        if checkpoint.state().dataset_fingerprint == RunFacts::NO_DATA_YET {
            check_tokenizer(&checkpoint, &self.run_dir, self.config(), &self.assembly.tokenizer)?;
        }
        state.restore(&checkpoint)?;
        if comm.rank() == 0 {
            say!("resuming from {}", checkpoint.dir().display());
            self.changed_settings().iter().for_each(|change| say!("changed since: {change}"));
        }
        Ok(Some(checkpoint))
    }

    /// Refuses other data than the checkpoint's, and says what is different, unless that is allowed.
    fn check_run(&self, checkpoint: &Checkpoint, facts: &RunFacts, rank: usize) -> Result<(), Incompatible> {
        let (checkpoint, change) = match check_run(checkpoint, facts) {
            Err(Incompatible::Data { checkpoint, change }) => (checkpoint, change),
            other => return other,
        };
        let before = std::fs::read(self.run_dir.dataset()).ok();
        let before = before.and_then(|json| serde_json::from_slice::<DatasetManifest>(&json).ok());
        let known = before.and_then(|before| DatasetManifest::difference(&before, &self.dataset.manifest()));
        let change = known.unwrap_or(change);
        if !self.config().data.allow_changed {
            return Err(Incompatible::Data { checkpoint, change });
        }
        if rank == 0 {
            telemetry::warn(&format!("{change}; the run goes on at the same data position"));
        }
        Ok(())
    }

    /// What this start sets otherwise than the one before it, as far as that one left its settings.
    fn changed_settings(&self) -> Vec<String> {
        let Ok(before) = config::load_run(&self.run_dir.config(), &[]) else { return Vec::new() };
        let pairs = before.values.iter().zip(&self.resolved.values);
        pairs
            .filter(|(before, now)| before.key == now.key && before.value != now.value)
            .map(|(before, now)| format!("{} = {} was {}", now.key, now.value, before.value))
            .collect()
    }

    fn banner(&self, site: &Site, limit: TokenLimit, world_size: usize) -> Banner {
        let Site { state, threads, device, .. } = site;
        let config = self.config();
        let model = &config.model;
        let parameters = state.model.arena().layout().parameters();
        let precision = match config.trainer.precision {
            Precision::Fp32 => "fp32",
            Precision::Bf16 => "fp32 with bf16 products",
        };
        Banner::default()
            .line("experiment", format!("{}: {}", self.args.experiment.experiment, config.description))
            .line(
                "model",
                format!(
                    "{}, width {}, {} layers, {} heads, {parameters} parameters, {precision}",
                    model.class.key(),
                    model.d_model,
                    model.num_layers,
                    model.nhead
                ),
            )
            .line(
                "data",
                format!(
                    "{} training rows, vocabulary {}, fingerprint {}",
                    self.dataset.len(),
                    self.assembly.tokenizer.vocab_size(),
                    self.dataset.fingerprint()
                ),
            )
            .line(
                "ranks",
                format!(
                    "{world_size} x {threads} threads, {}",
                    if world_size > 1 { "MPI" } else { "no MPI" }
                ),
            )
            .line(
                "batch",
                format!(
                    "{} over {world_size} ranks, in micro-batches of at most {}{} visible tokens ({})",
                    config.global_batch_size,
                    config.per_device_batch_size.map_or(String::new(), |rows| format!("{rows} rows and ")),
                    limit.tokens,
                    limit.source.reason()
                ),
            )
            .line("steps", format!("{} of {} done", state.step, config.trainer.max_steps))
            .line("run dir", self.run_dir.path().display().to_string())
            .line("device", device.describe())
    }
}
