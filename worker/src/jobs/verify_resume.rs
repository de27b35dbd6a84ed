//! `ilm-worker verify-resume`: trains some steps again from a checkpoint and compares them with what the run recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use checkpoints::Store;
use data_pipeline::{Dataset, Split};

use super::recorded::{self, Exactness};
use super::train::{Site, TrainingData, facts};
use crate::assembly::Assembly;
use crate::cli::VerifyResumeArgs;
use crate::comm::{Collectives, LaunchEnv, connect};
use crate::config::{self, Resolved, validate};
use crate::run_dir::RunDir;
use crate::train::{
    NoCheckpoint, RankFlags, Reducer, StepDigest, balance_ranks, check_model, check_run, digest_step,
    find_checkpoint, recorded_tokens, train_step,
};
use crate::{exit, say, telemetry};

/// Runs the job; the result is the exit code. Nothing is written.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn verify_resume(args: &VerifyResumeArgs) -> anyhow::Result<i32> {
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    let run_dir = RunDir::new(&args.run_dir.run_dir);
    let resolved = config::load_run(&run_dir.config(), &args.overrides)?;
    validate::training(&resolved.experiment, world_size)?;
    let assembly = Assembly::open(&resolved.experiment)?;
    let dataset = assembly.open_split(&resolved.experiment, Split::Train)?;
    let timeout = Duration::from_secs(resolved.experiment.trainer.collective_timeout_secs);
    let mut comm = connect(launch.as_ref(), timeout)?;
    let verification = Verification { args, run_dir, resolved, assembly, dataset };
    verification.run(&mut *comm).or_else(|error| exit::fail(&error, rank, world_size))
}

/// What was opened before the ranks connected.
struct Verification<'a> {
    args: &'a VerifyResumeArgs,
    run_dir: RunDir,
    resolved: Resolved,
    assembly: Assembly,
    dataset: Arc<dyn Dataset>,
}

impl Verification<'_> {
    fn run(&self, comm: &mut dyn Collectives) -> anyhow::Result<i32> {
        let store = Store::open(self.run_dir.path())?;
        let record = if comm.rank() == 0 { recorded::read(&self.run_dir)? } else { BTreeMap::new() };
        let step = if comm.rank() == 0 { Some(self.checkpoint_step(&store, &record)?) } else { None };
        let found = self.train_again(&store, step, comm)?;
        let verdict = if comm.rank() == 0 { self.compare(&record, &found) } else { Ok(()) };
        if let Err(difference) = &verdict {
            say!("not the same: {difference}");
        }
        let mut differs = [f64::from(u8::from(verdict.is_err()))];
        comm.broadcast("verdict", differs[..].as_mut().into())?;
        Ok(if differs[0] > 0.0 { exit::DIFFERS } else { exit::OK })
    }

    /// The newest checkpoint with enough recorded steps after it, or else the one with the most; or the one asked for.
    fn checkpoint_step(&self, store: &Store, record: &BTreeMap<u64, StepDigest>) -> anyhow::Result<u64> {
        let wanted = self.args.steps;
        let after = |step: u64| (1..=wanted).take_while(|n| record.contains_key(&(step + n))).count();
        let steps = store.list()?;
        let chosen = self.args.step.or_else(|| steps.into_iter().max_by_key(|&step| (after(step), step)));
        let step = chosen.ok_or_else(|| NoCheckpoint { run_dir: self.run_dir.path().to_owned() })?;
        if after(step) == 0 {
            bail!(
                "{} has no step after that of checkpoint {step}, so there is nothing to compare; choose an earlier one \
                 with --step",
                self.run_dir.digest().display()
            );
        }
        Ok(step)
    }

    /// Goes on from the checkpoint of `step`, which rank 0 names.
    fn train_again(
        &self,
        store: &Store,
        step: Option<u64>,
        comm: &mut dyn Collectives,
    ) -> anyhow::Result<Vec<StepDigest>> {
        let config = &self.resolved.experiment;
        let site = Site::set_up(comm, config, &self.assembly)?;
        let checkpoint =
            find_checkpoint(store, comm, step, &mut telemetry::warn)?.context("no checkpoint")?;
        let facts = facts(&self.resolved, &self.assembly, &*self.dataset);
        check_model(&checkpoint, &site.state.model)?;
        check_run(&checkpoint, &facts)?;
        let limit = site.limit(config, recorded_tokens(&checkpoint));
        let Site { device, mut state, .. } = site;
        state.restore(&checkpoint)?;
        state.broadcast_parameters(comm)?;

        let limit = validate::micro_batch_limit(config, Some(limit.tokens));
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let plan = validate::batch_plan(config, limit, rank, world_size)?;
        let data = TrainingData { config, assembly: &self.assembly, dataset: &self.dataset };
        let mut loader = data.loader(plan, world_size, data.schedule()?, state.position)?;
        // SAFETY: the state outlives the steps, and a step goes by the rules that the reducer sets.
        let mut reducer = unsafe { Reducer::connect(&device, comm, &config.trainer, state.model.arena())? };
        let mut steps = Vec::new();
        while (steps.len() as u64) < self.args.steps && state.step < config.trainer.max_steps {
            let Some(batch) = loader.next()? else { break };
            let batch = balance_ranks(comm, &config.trainer, loader.repacker(), batch)?;
            let figures = train_step(&mut state, config, comm, &mut reducer, &batch, RankFlags::default())?;
            steps.push(digest_step(&mut state, comm, &mut reducer, config, &batch, &figures)?);
        }
        reducer.finish_gather()?;
        Ok(steps)
    }

    /// Says how far both agree; the error is the first difference.
    fn compare(&self, record: &BTreeMap<u64, StepDigest>, found: &[StepDigest]) -> Result<(), String> {
        let pairs: Vec<_> =
            found.iter().map_while(|step| record.get(&step.step).map(|before| (before, step))).collect();
        let dropout = self.resolved.experiment.model.dropout;
        let mut least = Exactness::Bits;
        for (before, now) in &pairs {
            let exactness = Exactness::of(before.ranks, now.ranks, dropout);
            if let Some(difference) = exactness.difference(before, now) {
                return Err(difference);
            }
            if exactness != Exactness::Bits {
                least = exactness;
            }
        }
        let (Some((first, _)), Some((last, now))) = (pairs.first(), pairs.last()) else {
            return Err("the run has ended before the first step to compare".to_owned());
        };
        let checked = pairs.iter().filter(|(before, now)| before.parameters.and(now.parameters).is_some());
        let checksums = if checked.count() > 0 { ", parameters" } else { "" };
        let (verdict, figures) = match least {
            Exactness::Bits => ("same bits", format!("samples, losses, gradient norms{checksums}")),
            Exactness::Rounding => ("same samples, and losses equal to rounding", other_ranks(last, now, "")),
            Exactness::Samples => (
                "same samples",
                other_ranks(last, now, ", which draw other dropout, so losses cannot be compared"),
            ),
        };
        let (first, last) = (first.step, last.step);
        say!("{verdict}: steps {first} to {last}, trained again from checkpoint {} ({figures})", first - 1);
        let missing = self.args.steps - pairs.len() as u64;
        if missing > 0 {
            say!("the run recorded {missing} steps fewer than were to be compared");
        }
        Ok(())
    }
}

fn other_ranks(recorded: &StepDigest, now: &StepDigest, more: &str) -> String {
    format!("recorded on {} ranks, now on {}{more}", recorded.ranks, now.ranks)
}
