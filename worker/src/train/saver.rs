//! Saving while training goes on: begun at one step boundary, advanced at later ones, never two saves at a time.
//!
//! All ranks go through the same phases together. What a rank does by itself in a phase, it does in the background; the
//! phase ends at the first step boundary where [`GlobalFigures::saving`](super::GlobalFigures::saving) says that no rank is
//! busy any more. There all ranks learn whether one has failed, and give the save up together.

use std::time::{Duration, Instant};

use anyhow::Context;
use checkpoints::{
    BackgroundCommit, BackgroundWriter, Commit, Layout, RunState, SaveTimings, Staging, Store,
};

use super::TrainState;
use super::save::{RunFacts, SaveFailed, gather_records, save, together};
use super::sections::StateSection;
use super::state::checkpoint_layout;
use crate::comm::Collectives;
use crate::config::Experiment;
use crate::telemetry;

/// So many saves in a row may not fail. A full disk that somebody soon clears, or a server that is started anew, costs one or two.
/// What lasts for three intervals does not pass by itself, and what is trained under it is lost with the next crash.
const MOST_FAILED_IN_ROW: u32 = 3;

/// Between saves the store is here; anything else is a fault of this module.
const AWAY: &str = "the checkpoint store is in use";

/// A rank's part in the saves of a run.
pub struct Saver {
    /// Away while rank 0 commits.
    store: Option<Store>,
    /// None if training stops for every save.
    writer: Option<BackgroundWriter>,
    facts: RunFacts,
    phase: Phase,
    failed_in_row: u32,
    saved: Option<Saved>,
    /// Figures that came while the store was away, or that the disk has refused: step, name, value.
    figures: Vec<(u64, String, f64)>,
}

enum Phase {
    Idle,
    Writing { staging: Option<Staging>, layout: Layout, state: RunState },
    Committing { commit: Option<BackgroundCommit>, step: u64, timings: SaveTimings },
}

/// A checkpoint that a crash cannot take away any more.
#[derive(Debug, Clone, Copy)]
pub struct Saved {
    /// Its step.
    pub step: u64,
    /// How long its parts took on this rank; all of a save that training stood still for counts as `stage`.
    pub timings: SaveTimings,
}

impl Saver {
    /// Nothing is being saved yet. With `checkpoint.asynchronous` the memory of the copies is taken here.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        store: Store,
        facts: RunFacts,
        comm: &dyn Collectives,
        config: &Experiment,
        state: &TrainState,
    ) -> Result<Self, checkpoints::Error> {
        let writer = || BackgroundWriter::new(comm.rank(), state.section_elements());
        let writer = config.checkpoint.asynchronous.then(writer);
        Ok(Self {
            store: Some(store),
            writer: writer.transpose()?,
            facts,
            phase: Phase::Idle,
            failed_in_row: 0,
            saved: None,
            figures: Vec::new(),
        })
    }

    /// Whether this rank is at work for a save at this moment.
    pub fn is_busy(&self) -> bool {
        match &self.phase {
            Phase::Idle => false,
            Phase::Writing { .. } => self.writer.as_ref().is_some_and(BackgroundWriter::is_busy),
            Phase::Committing { commit, .. } => commit.as_ref().is_some_and(BackgroundCommit::is_busy),
        }
    }

    /// Begins to save `state`, which may change as soon as this returns; without `checkpoint.asynchronous` it is saved by then.
    /// An earlier save is finished first. One that any rank cannot write is given up with a warning, and training goes on.
    ///
    /// # Errors
    /// If this is one failed save too many in a row, or a collective fails. Earlier checkpoints stay as they are.
    pub fn begin(
        &mut self,
        comm: &mut dyn Collectives,
        config: &Experiment,
        state: &TrainState,
    ) -> anyhow::Result<()> {
        while self.step().is_some() {
            self.advance(comm, config)?;
        }
        let begun = if self.writer.is_some() {
            self.stage(comm, state)
        } else {
            self.save_standing(comm, config, state)
        };
        self.outlive(comm, config, state.step, begun)
    }

    /// Copies this rank's part of `state` and begins to write the copy.
    fn stage(&mut self, comm: &mut dyn Collectives, state: &TrainState) -> anyhow::Result<()> {
        let store = self.store.as_mut().context(AWAY)?;
        let begun = if comm.rank() == 0 { store.begin(state.step).map(Some) } else { Ok(None) };
        let staging = together(comm, "checkpoint begin", begun)?;
        let sections = state.sections()?;
        let views: Vec<_> = sections.iter().map(StateSection::view).collect();
        let dir = store.staging_dir(state.step);
        let staged = self.writer.as_mut().map(|writer| writer.stage(&dir, &views)).transpose();
        if let Err(error) = together(comm, "checkpoint copies", staged) {
            self.give_up(staging);
            return Err(error);
        }
        self.phase = Phase::Writing {
            staging,
            layout: checkpoint_layout(&state.model),
            state: self.facts.with_progress(state, comm.world_size()),
        };
        Ok(())
    }

    /// Ends the phase that all ranks have done their work of. To be called by all ranks at the same step boundary, while
    /// none is busy. Between saves it does nothing. If any rank could not write, what was staged is removed, and training goes on
    /// with a warning.
    ///
    /// # Errors
    /// As [`Saver::begin`].
    pub fn advance(&mut self, comm: &mut dyn Collectives, config: &Experiment) -> anyhow::Result<()> {
        let Some(step) = self.step() else { return Ok(()) };
        let ended = self.end_phase(comm, config);
        self.outlive(comm, config, step, ended)
    }

    /// The step that is being saved.
    fn step(&self) -> Option<u64> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Writing { state, .. } => Some(state.step),
            Phase::Committing { step, .. } => Some(*step),
        }
    }

    fn end_phase(&mut self, comm: &mut dyn Collectives, config: &Experiment) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => Ok(()),
            Phase::Writing { staging, layout, state } => {
                self.start_commit(comm, config, staging, layout, state)
            }
            Phase::Committing { commit, step, timings } => self.end_commit(comm, commit, step, timings),
        }
    }

    /// Goes on after a save that all ranks have given up, unless too many in a row have failed.
    fn outlive(
        &mut self,
        comm: &dyn Collectives,
        config: &Experiment,
        step: u64,
        ended: anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(failed) = given_up(ended)? else { return Ok(()) };
        self.failed_in_row += 1;
        let count = self.failed_in_row;
        if count >= MOST_FAILED_IN_ROW {
            let what = format!("{count} saves in a row have failed, the last one that of step {step}");
            return Err(anyhow::Error::new(failed).context(what));
        }
        let next = step.saturating_add(config.checkpoint.every_n_steps).min(config.trainer.max_steps);
        if comm.rank() == 0 {
            telemetry::warn(&format!(
                "the checkpoint of step {step} could not be saved: {failed}; training goes on and saves again by \
                 step {next} (failed saves in a row: {count}; with {MOST_FAILED_IN_ROW} the run ends)"
            ));
        }
        Ok(())
    }

    /// Waits until nothing is being saved, for the end of training. A save that fails ends nothing here and is warned of: what
    /// comes next saves a newer state, or has another error to tell.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn finish(&mut self, comm: &mut dyn Collectives, config: &Experiment) -> anyhow::Result<()> {
        while let Some(step) = self.step() {
            let ended = self.end_phase(comm, config);
            if let Some(failed) = given_up(ended)?
                && comm.rank() == 0
            {
                telemetry::warn(&format!("the checkpoint of step {step} could not be saved: {failed}"));
            }
        }
        Ok(())
    }

    /// Saves `state` as the last thing of a run, after an earlier save is finished.
    ///
    /// # Errors
    /// As [`save`].
    pub fn save_now(
        &mut self,
        comm: &mut dyn Collectives,
        config: &Experiment,
        state: &TrainState,
    ) -> anyhow::Result<()> {
        self.finish(comm, config)?;
        self.save_standing(comm, config, state)
    }

    /// Saves `state` while training stands still.
    fn save_standing(
        &mut self,
        comm: &mut dyn Collectives,
        config: &Experiment,
        state: &TrainState,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        save(self.store.as_mut().context(AWAY)?, comm, config, &self.facts, state)?;
        self.succeeded(state.step, SaveTimings { stage: begun.elapsed(), ..Default::default() });
        Ok(())
    }

    fn succeeded(&mut self, step: u64, timings: SaveTimings) {
        self.failed_in_row = 0;
        self.saved = Some(Saved { step, timings });
        self.record_held_figures();
    }

    /// The save that was completed since the last call, if one was.
    pub fn take_saved(&mut self) -> Option<Saved> {
        self.saved.take()
    }

    /// Records a figure with the checkpoint of `step`, if there is one or one is being saved. One that the disk refuses is recorded
    /// after a later save. For rank 0.
    pub fn record_figure(&mut self, step: u64, name: &str, value: f64) {
        self.figures.push((step, name.to_owned(), value));
        self.record_held_figures();
    }

    fn record_held_figures(&mut self) {
        let Some(store) = &mut self.store else { return };
        self.figures.retain(|(step, name, value)| match store.record_metric(*step, name, *value) {
            Ok(_) => false,
            Err(error) => {
                telemetry::warn(&format!(
                    "{name} of step {step} is not recorded with its checkpoint: {error}"
                ));
                !matches!(error, checkpoints::Error::Unsavable { .. })
            }
        });
    }

    /// All shards are durable and rank 0 commits them; or one is not, and the save is given up.
    fn start_commit(
        &mut self,
        comm: &mut dyn Collectives,
        config: &Experiment,
        staging: Option<Staging>,
        layout: Layout,
        state: RunState,
    ) -> anyhow::Result<()> {
        let written = self.writer.as_mut().and_then(BackgroundWriter::wait).transpose();
        let written = match together(comm, "checkpoint shards", written) {
            Ok(written) => written.context("no shard was staged")?,
            Err(error) => {
                self.give_up(staging);
                return Err(error);
            }
        };
        let records = gather_records(comm, &written.record)?;
        let (step, timings) = (state.step, written.timings);
        let mut commit = None;
        if let Some(staging) = staging {
            let store = self.store.take().context(AWAY)?;
            let config = config.checkpoint.clone();
            commit =
                Some(BackgroundCommit::start(store, Commit { staging, layout, records, state, config })?);
        }
        self.phase = Phase::Committing { commit, step, timings };
        Ok(())
    }

    fn end_commit(
        &mut self,
        comm: &mut dyn Collectives,
        commit: Option<BackgroundCommit>,
        step: u64,
        mut timings: SaveTimings,
    ) -> anyhow::Result<()> {
        let mut committed = Ok(None);
        if let Some(commit) = commit {
            let (store, result) = commit.wait();
            self.store = Some(store);
            committed = result.map(Some);
        }
        let committed = together(comm, "checkpoint commit", committed)?;
        timings.commit = committed.map_or(Duration::ZERO, |committed| committed.took);
        self.succeeded(step, timings);
        Ok(())
    }

    /// Space may be what was missing, so the half checkpoint goes, once this rank does not write to it any more; the first error is
    /// the one to tell.
    fn give_up(&mut self, staging: Option<Staging>) {
        let _ = self.writer.as_mut().and_then(BackgroundWriter::wait);
        let _ = self.store.as_mut().zip(staging).map(|(store, staging)| store.abandon(staging));
    }
}

/// What ended a phase, if all ranks have given the save up together; any other error ends the run.
fn given_up(ended: anyhow::Result<()>) -> anyhow::Result<Option<SaveFailed>> {
    match ended {
        Ok(()) => Ok(None),
        Err(error) => Ok(Some(error.downcast()?)),
    }
}
