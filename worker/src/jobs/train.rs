//! `ilm-worker train`: from a configuration to a trained model, in as many starts as it takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoints::Store;
use data_pipeline::{BatchPlan, Dataset, GlobalOrder, Split, TrainLoader};
use xxhash_rust::xxh3::xxh3_64;

use crate::assembly::Assembly;
use crate::cli::TrainArgs;
use crate::comm::{Collectives, LaunchEnv, assert_equal, connect};
use crate::config::{self, Experiment, Resolved};
use crate::eval::{self, EvalContext};
use crate::run_dir::{JsonLines, RunDir, replace_file};
use crate::signals::StopRequest;
use crate::telemetry::{self, Banner, Progress, StepRecord};
use crate::train::{
    RunFacts, StepFigures, TrainState, check_model, check_run, checkpoint_layout, find_checkpoint, save,
    train_step,
};
use crate::{exit, threads};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn train(args: &TrainArgs) -> anyhow::Result<i32> {
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    let resolved = config::load(
        &args.experiment.experiment,
        &args.experiment.overrides,
        args.experiment.config_dir.config_dir.as_deref(),
    )?;
    let experiment = &resolved.experiment;
    for warning in config::validate::training(experiment, world_size)? {
        if rank == 0 {
            telemetry::warn(&warning);
        }
    }
    let plan = config::validate::batch_plan(experiment, rank, world_size)?;
    let assembly = Assembly::open(experiment)?;
    let dataset = assembly.open_split(experiment, Split::Train)?;
    let validates =
        experiment.trainer.val_check_interval.is_some() && Assembly::has_split(experiment, Split::Validation);
    let validation = validates.then(|| assembly.open_split(experiment, Split::Validation)).transpose()?;
    let run_dir =
        args.run_dir.clone().unwrap_or_else(|| format!("runs/{}", args.experiment.experiment).into());

    let timeout = Duration::from_secs(experiment.trainer.collective_timeout_secs);
    let mut comm = connect(launch.as_ref(), timeout)?;
    let run =
        Run { args, resolved: &resolved, assembly, dataset, validation, plan, run_dir: RunDir::new(run_dir) };
    run.start(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// Everything of a run that was opened before the ranks connected.
struct Run<'a> {
    args: &'a TrainArgs,
    resolved: &'a Resolved,
    assembly: Assembly,
    dataset: Arc<dyn Dataset>,
    validation: Option<Arc<dyn Dataset>>,
    plan: BatchPlan,
    run_dir: RunDir,
}

impl Run<'_> {
    fn config(&self) -> &Experiment {
        &self.resolved.experiment
    }

    fn start(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        let stop = StopRequest::install()?;
        let threads = threads::threads_per_rank(comm, self.config().trainer.threads)?;
        threads::set_threads(threads);
        let model = self.assembly.build_model(self.config())?;
        let mut state = TrainState::new(model, self.config());
        if self.args.dry_run {
            if comm.rank() == 0 {
                print!("{}", self.banner(&state, comm.world_size(), threads));
            }
            return Ok(exit::OK);
        }

        let store = self.open_run_dir(comm)?;
        let facts = self.facts();
        self.resume(&store, comm, &facts, &mut state)?;
        comm.broadcast("parameters", state.model.arena_mut().params_mut().into())?;
        assert_equal(comm, "parameters", state.parameter_checksum())?;
        if comm.rank() == 0 {
            replace_file(&self.run_dir.config(), &self.resolved.render())?;
            print!("{}", self.banner(&state, comm.world_size(), threads));
        }
        TrainLoop { run: self, comm, store, facts, stop }.run(&mut state)
    }

    /// Creates the run directory on rank 0, moving an older run aside if told to.
    fn open_run_dir(&self, comm: &mut dyn Collectives) -> anyhow::Result<Store> {
        if comm.rank() == 0 {
            self.run_dir.create()?;
            if self.args.fresh
                && let Some(aside) = self.run_dir.set_aside()?
            {
                println!("moved the earlier run to {}", aside.display());
            }
        }
        comm.barrier("run directory")?;
        let mut store = Store::open(self.run_dir.path())?;
        if comm.rank() == 0 {
            store.remove_stale()?;
        }
        Ok(store)
    }

    fn facts(&self) -> RunFacts {
        RunFacts {
            seed: self.config().seed,
            num_embeddings: self.assembly.tokenizer.vocab_size() as u64,
            config_hash: format!("{:016x}", xxh3_64(self.resolved.render().as_bytes())),
            dataset_fingerprint: self.dataset.fingerprint().to_string(),
        }
    }

    fn resume(
        &self,
        store: &Store,
        comm: &mut dyn Collectives,
        facts: &RunFacts,
        state: &mut TrainState,
    ) -> anyhow::Result<()> {
        let Some(checkpoint) = find_checkpoint(store, comm, None, &mut telemetry::warn)? else {
            return Ok(());
        };
        check_model(&checkpoint, &checkpoint_layout(&state.model), facts.num_embeddings)?;
        check_run(&checkpoint, facts)?;
        state.restore(&checkpoint)?;
        if comm.rank() == 0 {
            println!("resuming from {}", checkpoint.dir().display());
        }
        Ok(())
    }

    fn banner(&self, state: &TrainState, world_size: usize, threads: usize) -> Banner {
        let config = self.config();
        let model = &config.model;
        let parameters: usize = state.model.arena().layout().entries().iter().map(|entry| entry.len).sum();
        Banner::default()
            .line("experiment", format!("{}: {}", self.args.experiment.experiment, config.description))
            .line(
                "model",
                format!(
                    "rotary with stopping head, width {}, {} layers, {} heads, {parameters} parameters, fp32",
                    model.d_model, model.num_layers, model.nhead
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
                    "{} = {} per device x {world_size} ranks x {} accumulated",
                    config.global_batch_size,
                    config.per_device_batch_size,
                    self.plan.accumulate()
                ),
            )
            .line("steps", format!("{} of {} done", state.step, config.trainer.max_steps))
            .line("run dir", self.run_dir.path().display().to_string())
    }
}

/// The steps of one start of a run.
struct TrainLoop<'a, 'b> {
    run: &'a Run<'a>,
    comm: &'b mut dyn Collectives,
    store: Store,
    facts: RunFacts,
    stop: StopRequest,
}

impl TrainLoop<'_, '_> {
    fn run(&mut self, state: &mut TrainState) -> anyhow::Result<i32> {
        let config = self.run.config();
        let mut loader = self.loader(state.position)?;
        let mut view = self.view(state.step)?;
        while state.step < config.trainer.max_steps {
            let started = Instant::now();
            let batch = loader.next()?;
            let waited = started.elapsed();
            let figures = train_step(state, config, self.comm, &batch, waited, self.stop.is_set())?;
            if let Some(view) = &mut view {
                view.show(&self.record(state, &figures, started.elapsed()))?;
            }
            let finished = state.step == config.trainer.max_steps;
            if finished || figures.global.stop || state.step.is_multiple_of(config.checkpoint.every_n_steps) {
                self.save(state, view.as_ref())?;
            }
            if figures.global.stop && !finished {
                if let Some(view) = &view {
                    view.progress.finish();
                    println!("stopped by a signal after step {}; start again to go on", state.step);
                }
                return Ok(exit::PREEMPTED);
            }
            if config.trainer.val_check_interval.is_some_and(|every| state.step.is_multiple_of(every)) {
                self.validate(state, view.as_mut())?;
            }
        }
        if let Some(view) = &view {
            view.progress.finish();
            println!("finished at step {}", state.step);
        }
        Ok(exit::OK)
    }

    fn loader(&self, position: u64) -> anyhow::Result<TrainLoader> {
        let run = self.run;
        let data = &run.config().data;
        let order = if data.shuffle {
            GlobalOrder::new(run.dataset.groups(), run.config().seed, data.window_groups)?
        } else {
            GlobalOrder::sequential(run.dataset.groups())?
        };
        let collator = run.assembly.collator(run.config())?;
        let dataset = Arc::clone(&run.dataset);
        Ok(TrainLoader::spawn(
            dataset,
            collator,
            order,
            run.plan,
            position,
            data.threads,
            data.prefetch_steps,
        )?)
    }

    /// Only rank 0 shows and writes figures.
    fn view(&self, step: u64) -> anyhow::Result<Option<View>> {
        if self.comm.rank() > 0 {
            return Ok(None);
        }
        let trainer = &self.run.config().trainer;
        Ok(Some(View {
            progress: Progress::new(step, trainer.max_steps, trainer.log_every_n_steps),
            metrics: JsonLines::open(self.run.run_dir.metrics(), step)?,
            validation: JsonLines::open(self.run.run_dir.validation(), step)?,
            recent_step_s: None,
        }))
    }

    fn record(&self, state: &TrainState, figures: &StepFigures, duration: Duration) -> StepRecord {
        let global = &figures.global;
        let step_s = duration.as_secs_f64();
        StepRecord {
            step: state.step,
            epoch: state.position as f64 / self.run.dataset.len() as f64,
            loss: global.token_ce + global.stop_loss,
            token_ce: global.token_ce,
            stop_loss: global.stop_loss,
            grad_norm: figures.grad_norm,
            lr: figures.lr,
            examples_per_s: global.examples / step_s,
            tokens_per_s: global.visible / step_s,
            useful_positions: global.visible / global.computed,
            data_wait_s: global.data_wait.as_secs_f64(),
            step_s,
            eta_s: 0.0,
        }
    }

    fn save(&mut self, state: &TrainState, view: Option<&View>) -> anyhow::Result<()> {
        let started = Instant::now();
        save(&mut self.store, self.comm, self.run.config(), &self.facts, state)?;
        if let Some(view) = view {
            let took = started.elapsed().as_secs_f64();
            view.progress.say(&format!("saved a checkpoint of step {} in {took:.2} s", state.step));
        }
        Ok(())
    }

    fn validate(&mut self, state: &mut TrainState, view: Option<&mut View>) -> anyhow::Result<()> {
        let run = self.run;
        let Some(dataset) = &run.validation else { return Ok(()) };
        let step = state.step;
        let context =
            EvalContext { config: run.config(), assembly: &run.assembly, dataset: Arc::clone(dataset) };
        let report = state.with_averaged_weights(|model| eval::evaluate(&context, model, self.comm))?;
        if let Some(view) = view {
            view.progress.say(&format!("validation at step {step}: {report}"));
            view.validation.append(&report.of_step(step))?;
        }
        Ok(())
    }
}

/// What rank 0 shows and writes.
struct View {
    progress: Progress,
    metrics: JsonLines,
    validation: JsonLines,
    recent_step_s: Option<f64>,
}

impl View {
    fn show(&mut self, record: &StepRecord) -> anyhow::Result<()> {
        const PAST: f64 = 0.95;
        let recent =
            self.recent_step_s.map_or(record.step_s, |past| PAST * past + (1.0 - PAST) * record.step_s);
        self.recent_step_s = Some(recent);
        let record =
            StepRecord { eta_s: self.progress.remaining(record.step) as f64 * recent, ..record.clone() };
        self.metrics.append(&record)?;
        self.progress.show(&record);
        Ok(())
    }
}
