//! `ilm-worker evaluate`: measures a checkpoint of a run on a split.

use std::sync::Arc;

use data_pipeline::{Dataset, Split};
use serde::Serialize;

use super::offline::{Loaded, Offline, Weights};
use super::shared_rows::{assert_same_rows, end_by_data};
use crate::cli::{EvaluateArgs, SplitArg};
use crate::comm::Collectives;
use crate::eval::{self, EvalContext, Outcome, Report, ReportOfStep};
use crate::exit;
use crate::run_dir::replace_file;
use crate::say;
use crate::signals::StopRequest;
use crate::vitals::{self, Phase};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<i32> {
    let mut signals = StopRequest::install()?;
    let offline = Offline::open(&args.checkpoint)?;
    signals.listen_to(&offline.config.trainer.stop_signals)?;
    let (split, split_name) = match args.split {
        SplitArg::Validation => (Split::Validation, "validation"),
        SplitArg::Test => (Split::Test, "test"),
    };
    let dataset = offline.assembly.open_split(&offline.config, split)?;
    let (rank, world_size) = offline.rank_and_world_size();
    let mut comm = offline.connect()?;
    let evaluation = Evaluation { offline, dataset, split_name, stop: signals.request() };
    evaluation.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// What is written of an evaluation.
#[derive(Serialize)]
struct Measured {
    weights: Weights,
    #[serde(flatten)]
    report: ReportOfStep,
}

/// What was opened before the ranks connected.
struct Evaluation<'a> {
    offline: Offline<'a>,
    dataset: Arc<dyn Dataset>,
    split_name: &'static str,
    stop: StopRequest,
}

impl Evaluation<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        self.offline.show_life(comm, &self.stop);
        assert_same_rows(comm, "data to evaluate", &*self.dataset)?;
        let loaded = self.offline.load(comm)?;
        let _phase = vitals::phase(Phase::Evaluate);
        let context = EvalContext {
            config: &self.offline.config,
            assembly: &self.offline.assembly,
            dataset: Arc::clone(&self.dataset),
            stop: &self.stop,
        };
        let report = match eval::evaluate(&context, &loaded.model, comm)? {
            Outcome::Done(report) => report,
            Outcome::Stopped => {
                if comm.rank() == 0 {
                    say!("stopped by a signal before the evaluation was done; start again for its figures");
                }
                return Ok(exit::PREEMPTED);
            }
            Outcome::Failed(error) => return end_by_data(comm, error),
        };
        if comm.rank() == 0 {
            self.publish(&loaded, report)?;
        }
        vitals::end();
        Ok(exit::OK)
    }

    fn publish(&self, loaded: &Loaded, report: Report) -> anyhow::Result<()> {
        let (step, weights) = (loaded.run.step, loaded.weights);
        say!("step {step}, {weights}, {} split: {report}", self.split_name);
        // Beside the usual one, for who wants to compare them.
        let kind = if self.offline.wants_raw_weights() { "-raw" } else { "" };
        let name = format!("step-{step:09}-{}{kind}.json", self.split_name);
        let path = self.offline.run_dir.evaluations().join(name);
        let measured = Measured { weights, report: report.of_step(step) };
        let mut json = serde_json::to_string_pretty(&measured)?;
        json.push('\n');
        replace_file(&path, &json)?;
        say!("written to {}", path.display());
        Ok(())
    }
}
