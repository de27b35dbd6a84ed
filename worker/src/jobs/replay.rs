//! `ilm-worker replay`: makes the batch of one step again and shows it, without training.

use std::sync::Arc;

use anyhow::{Context, bail};
use checkpoints::Store;
use data_pipeline::{BatchPool, Dataset, PlainMemory, Repacker, Split, StepBatch};

use super::recorded;
use super::rows::RankBatch;
use super::train::TrainingData;
use crate::assembly::Assembly;
use crate::cli::ReplayArgs;
use crate::config::{self, Experiment, validate};
use crate::run_dir::RunDir;
use crate::train::{StepDigest, recorded_tokens, samples_hash};
use crate::{complain, exit, say};

/// Runs the job; the result is the exit code.
///
/// # Errors
/// A run that cannot be read, a step that it cannot have, data that cannot be read.
pub fn replay(args: &ReplayArgs) -> anyhow::Result<i32> {
    let run_dir = RunDir::new(&args.run_dir.run_dir);
    let config = config::load_run(&run_dir.config(), &args.overrides)?.experiment;
    validate::training(&config, 1)?;
    let assembly = Assembly::open(&config)?;
    let dataset = assembly.open_split(&config, Split::Train)?;
    let recorded = recorded::read(&run_dir)?.remove(&args.step);
    let cut = Cut::of(&run_dir, &config, recorded.as_ref())?;
    let replay = Replay { args, config, assembly, dataset, recorded };
    replay.run(cut)
}

/// How a global batch was shared out.
#[derive(Debug, Clone, Copy)]
struct Cut {
    ranks: usize,
    /// Most visible tokens of a micro-batch.
    tokens: Option<usize>,
}

impl Cut {
    /// As recorded with the step; otherwise as in the newest checkpoint, or by the settings alone.
    fn of(run_dir: &RunDir, config: &Experiment, step: Option<&StepDigest>) -> anyhow::Result<Self> {
        let store = Store::open(run_dir.path())?;
        let newest = store.list()?.into_iter().rev().find_map(|step| store.get(step).ok());
        let of_checkpoint = newest.as_ref().map(|checkpoint| checkpoint.state().world_size);
        let ranks = step.map(|step| step.ranks).or(of_checkpoint).unwrap_or(1);
        let recorded =
            newest.as_ref().and_then(recorded_tokens).and_then(|tokens| usize::try_from(tokens).ok());
        Ok(Self {
            ranks: usize::try_from(ranks)?,
            tokens: config.trainer.max_tokens_per_micro_batch.or(recorded),
        })
    }
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    config: Experiment,
    assembly: Assembly,
    dataset: Arc<dyn Dataset>,
    recorded: Option<StepDigest>,
}

impl Replay<'_> {
    fn run(&self, cut: Cut) -> anyhow::Result<i32> {
        let ReplayArgs { step, rank: only, micro_batch, .. } = *self.args;
        if let Some(rank) = only.filter(|&rank| rank >= cut.ranks) {
            bail!("--rank {rank} took no part in step {step}, which was computed by {} ranks", cut.ranks);
        }
        let mut samples = 0_u64;
        let mut shown = false;
        for (rank, batch) in self.batches(cut)?.into_iter().enumerate() {
            samples = samples.wrapping_add(samples_hash(&batch.micro_batches));
            let is_wanted = only.is_none_or(|only| only == rank);
            shown |= is_wanted && micro_batch.is_none_or(|index| index < batch.micro_batches.len());
            if is_wanted {
                self.show(rank, &batch)?;
            }
        }
        if !shown {
            bail!("no rank that was asked for has a micro-batch {}", micro_batch.unwrap_or_default());
        }
        Ok(self.compare(samples))
    }

    /// What every rank computed.
    fn batches(&self, cut: Cut) -> anyhow::Result<Vec<StepBatch>> {
        let read: Vec<_> = (0..cut.ranks).map(|rank| self.batch(cut, rank)).collect::<Result<_, _>>()?;
        if !self.config.trainer.balances_ranks(cut.ranks) {
            return Ok(read);
        }
        let limit = validate::micro_batch_limit(&self.config, cut.tokens);
        let repacker = Repacker::new(limit, BatchPool::new(Arc::new(PlainMemory), 0));
        Ok(repacker.deal_all(read)?)
    }

    /// The part of the global batch that a rank read.
    fn batch(&self, cut: Cut, rank: usize) -> anyhow::Result<StepBatch> {
        let config = &self.config;
        let data = TrainingData { config, assembly: &self.assembly, dataset: &self.dataset };
        let schedule = data.schedule()?;
        let past_the_end = || format!("the run's data ends before step {}", self.args.step);
        let positions = match &self.recorded {
            Some(recorded) => schedule.step(recorded.position),
            None => schedule.steps(0).nth(usize::try_from(self.args.step - 1)?),
        };
        let positions = positions.with_context(past_the_end)?;
        let limit = validate::micro_batch_limit(config, cut.tokens);
        let plan = validate::batch_plan(config, limit, rank, cut.ranks)?;
        let only_this = schedule.end_at(positions.end);
        let batch = data.loader(plan, cut.ranks, only_this, positions.start)?.next()?;
        batch.with_context(past_the_end)
    }

    fn show(&self, rank: usize, batch: &StepBatch) -> anyhow::Result<()> {
        let ReplayArgs { step, micro_batch, json, .. } = *self.args;
        let micro_batches = &batch.micro_batches;
        let tokenizer = &self.assembly.tokenizer;
        let batch = RankBatch { step, rank, micro_batches, tokenizer };
        let text = if json { batch.json_lines(micro_batch)? } else { batch.describe(micro_batch) };
        if !text.is_empty() {
            say!("{}", text.trim_end_matches('\n'));
        }
        Ok(())
    }

    /// Whether these are the samples that the run recorded.
    fn compare(&self, samples: u64) -> i32 {
        let tell = |sentence: &str| {
            if self.args.json { complain!("{sentence}") } else { say!("{sentence}") }
        };
        match &self.recorded {
            None => tell("the run recorded no such step, so it was found by counting"),
            Some(recorded) if recorded.samples.0 == samples => {
                tell("these are the samples, texts and drops that the run recorded");
            }
            Some(_) => {
                tell("these are not the samples, texts or drops that the run recorded");
                return exit::DIFFERS;
            }
        }
        exit::OK
    }
}
