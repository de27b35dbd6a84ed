//! Whose record lies in a run directory: that of the last launch that trained there, not of jobs beside the run or of launches that
//! the worker refused.

use crate::error::Error;
use crate::event::Ending;
use crate::outcome::Outcome;
use crate::output::complain;
use crate::plan::RunPlan;
use crate::record::Record;
use crate::status::{self, Status};
use crate::worker_args;
use std::path::PathBuf;
use std::time::SystemTime;

/// The worker's code for a wrong command line or configuration.
const USAGE: i32 = 2;
/// Its code for a run directory that another run has, among others.
const CHECKPOINT: i32 = 4;

/// What one launch writes into its run directory.
#[derive(Debug)]
pub struct Notes {
    /// Where; nowhere for other jobs than training.
    run_dir: Option<PathBuf>,
    /// What was there before.
    before: Option<Record>,
    /// Whether another run goes on there, as far as can be seen; the worker alone knows, and refuses this one then.
    taken: bool,
}

impl Notes {
    /// Looks at what is there.
    pub fn new(plan: &RunPlan) -> Self {
        let run_dir = plan.run_dir.clone().filter(|_| worker_args::trains(&plan.worker_args));
        let host = status::this_host();
        let seen = run_dir
            .as_deref()
            .and_then(|run_dir| Status::read(run_dir, status::FRESH, &host, SystemTime::now()).ok());
        let taken = seen.as_ref().is_some_and(|status| status.state.goes_on());
        Self { run_dir, before: seen.and_then(|status| status.launch), taken }
    }

    /// An attempt begins.
    pub fn begin(&self, record: &Record) {
        if !self.taken {
            self.write(record);
        }
    }

    /// An attempt has ended.
    pub fn end(&mut self, record: &Record, outcome: Outcome) {
        self.taken &= !has_run(outcome);
        if self.taken {
            return;
        }
        let is_refused = matches!(outcome, Outcome::RankFailed { ending: Ending::Exit(USAGE), .. });
        match &self.before {
            Some(before) if is_refused && record.restarts == 0 => self.write(before),
            _ => self.write(record),
        }
    }

    fn write(&self, record: &Record) {
        let Some(run_dir) = &self.run_dir else { return };
        let written = std::fs::create_dir_all(run_dir).map_err(Error::io("create", run_dir));
        // A disk that is full is no reason to end a run, or to end it differently.
        if let Err(error) = written.and_then(|()| record.write(run_dir)) {
            complain(format_args!("ilm-launch: {error}"));
        }
    }
}

/// Whether the ranks got as far as having the run directory for themselves, so that nobody else had it.
fn has_run(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Finished | Outcome::Preempted | Outcome::RankHangs { .. } => true,
        Outcome::RankFailed { ending, .. } => {
            ![Ending::Exit(USAGE), Ending::Exit(CHECKPOINT)].contains(&ending)
        }
        Outcome::StoppedEarly | Outcome::NotStarted { .. } | Outcome::Aborted { .. } => false,
        Outcome::MpirunFailed(_) | Outcome::HostsUnusable { .. } => false,
    }
}
