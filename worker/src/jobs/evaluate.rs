//! `ilm-worker evaluate`: measures a checkpoint of a run on a split.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use checkpoints::Store;
use data_pipeline::{Dataset, Split};

use crate::assembly::Assembly;
use crate::cli::{EvaluateArgs, SplitArg};
use crate::comm::{Collectives, LaunchEnv, connect};
use crate::config::{self, Experiment};
use crate::eval::{self, EvalContext, Report};
use crate::run_dir::{RunDir, replace_file};
use crate::telemetry;
use crate::train::{check_model, checkpoint_layout, find_checkpoint, load_weights};
use crate::{exit, threads};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<i32> {
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    let run_dir = RunDir::new(run_dir_of(args));
    let config = config::load_run(&run_dir.config(), &args.overrides)?.experiment;
    let assembly = Assembly::open(&config)?;
    let (split, split_name) = match args.split {
        SplitArg::Validation => (Split::Validation, "validation"),
        SplitArg::Test => (Split::Test, "test"),
    };
    let dataset = assembly.open_split(&config, split)?;

    let timeout = Duration::from_secs(config.trainer.collective_timeout_secs);
    let mut comm = connect(launch.as_ref(), timeout)?;
    let evaluation = Evaluation { args, run_dir, config, assembly, dataset, split_name };
    evaluation.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

fn run_dir_of(args: &EvaluateArgs) -> PathBuf {
    match (&args.run_dir, &args.experiment) {
        (Some(run_dir), _) => run_dir.clone(),
        (None, experiment) => format!("runs/{}", experiment.as_deref().unwrap_or_default()).into(),
    }
}

/// What was opened before the ranks connected.
struct Evaluation<'a> {
    args: &'a EvaluateArgs,
    run_dir: RunDir,
    config: Experiment,
    assembly: Assembly,
    dataset: Arc<dyn Dataset>,
    split_name: &'static str,
}

impl Evaluation<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        let threads = threads::threads_per_rank(comm, self.config.trainer.threads)?;
        threads::set_threads(threads);
        let mut model = self.assembly.build_model(&self.config)?;
        let store = Store::open(self.run_dir.path())?;
        let checkpoint = find_checkpoint(&store, comm, self.args.step, &mut telemetry::warn)?
            .with_context(|| format!("{} holds no checkpoint to evaluate", self.run_dir.path().display()))?;
        let vocabulary = self.assembly.tokenizer.vocab_size() as u64;
        check_model(&checkpoint, &checkpoint_layout(&model), vocabulary)?;
        load_weights(&mut model, &checkpoint, !self.args.raw_weights)?;

        let context = EvalContext {
            config: &self.config,
            assembly: &self.assembly,
            dataset: Arc::clone(&self.dataset),
        };
        let report = eval::evaluate(&context, &model, comm)?;
        if comm.rank() == 0 {
            self.publish(checkpoint.state().step, report)?;
        }
        Ok(exit::OK)
    }

    fn publish(&self, step: u64, report: Report) -> anyhow::Result<()> {
        let weights = if self.args.raw_weights { "weights as trained" } else { "averaged weights" };
        println!("step {step}, {weights}, {} split: {report}", self.split_name);
        let path = self.run_dir.evaluations().join(format!("step-{step:09}-{}.json", self.split_name));
        let mut json = serde_json::to_string_pretty(&report.of_step(step))?;
        json.push('\n');
        replace_file(&path, &json)?;
        println!("written to {}", path.display());
        Ok(())
    }
}
