//! Saving while training goes on: begun at one step boundary, advanced at later ones, never two saves at a time.
//!
//! All ranks go through the same phases together. What a rank does by itself in a phase, it does in the background; the
//! phase ends at the first step boundary where [`GlobalFigures::saving`](super::GlobalFigures::saving) says that no rank is
//! busy any more.

use std::time::{Duration, Instant};

use anyhow::Context;
use checkpoints::{
    BackgroundCommit, BackgroundWriter, Commit, Layout, RunState, SaveTimings, Staging, Store,
};

use super::TrainState;
use super::save::{RunFacts, gather_records, save, together};
use super::sections::StateSection;
use super::state::checkpoint_layout;
use crate::comm::Collectives;
use crate::config::Experiment;

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
    saved: Option<Saved>,
    /// Figures that came while the store was away: step, name, value.
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

    /// Begins to save `state`, which may change as soon as this returns. An earlier save is finished first. Only with
    /// `checkpoint.asynchronous`; otherwise it is [`Saver::save_now`].
    ///
    /// # Errors
    /// If any rank cannot write, or a collective fails. Earlier checkpoints stay as they are.
    pub fn begin(
        &mut self,
        comm: &mut dyn Collectives,
        config: &Experiment,
        state: &TrainState,
    ) -> anyhow::Result<()> {
        if self.writer.is_none() {
            return self.save_now(comm, config, state);
        }
        self.finish(comm, config)?;
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
    /// none is busy. Between saves it does nothing.
    ///
    /// # Errors
    /// If any rank could not write, or a collective fails. What was staged is removed, earlier checkpoints stay.
    pub fn advance(&mut self, comm: &mut dyn Collectives, config: &Experiment) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => Ok(()),
            Phase::Writing { staging, layout, state } => {
                self.start_commit(comm, config, staging, layout, state)
            }
            Phase::Committing { commit, step, timings } => self.end_commit(comm, commit, step, timings),
        }
    }

    /// Waits until nothing is being saved.
    ///
    /// # Errors
    /// As [`Saver::advance`].
    pub fn finish(&mut self, comm: &mut dyn Collectives, config: &Experiment) -> anyhow::Result<()> {
        while !matches!(self.phase, Phase::Idle) {
            self.advance(comm, config)?;
        }
        Ok(())
    }

    /// Saves `state` while training stands still, after an earlier save is finished.
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
        let begun = Instant::now();
        save(self.store.as_mut().context(AWAY)?, comm, config, &self.facts, state)?;
        let timings = SaveTimings { stage: begun.elapsed(), ..Default::default() };
        self.saved = Some(Saved { step: state.step, timings });
        Ok(())
    }

    /// The save that was completed since the last call, if one was.
    pub fn take_saved(&mut self) -> Option<Saved> {
        self.saved.take()
    }

    /// Records a figure with the checkpoint of `step`, if there is one or one is being saved. For rank 0.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn record_figure(&mut self, step: u64, name: &str, value: f64) -> Result<(), checkpoints::Error> {
        self.figures.push((step, name.to_owned(), value));
        self.record_held_figures()
    }

    fn record_held_figures(&mut self) -> Result<(), checkpoints::Error> {
        let Some(store) = &mut self.store else { return Ok(()) };
        for (step, name, value) in self.figures.drain(..) {
            store.record_metric(step, &name, value)?;
        }
        Ok(())
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
        self.saved = Some(Saved { step, timings });
        Ok(self.record_held_figures()?)
    }

    /// Space may be what was missing, so the half checkpoint goes; the first error is the one to tell.
    fn give_up(&mut self, staging: Option<Staging>) {
        let _ = self.store.as_mut().zip(staging).map(|(store, staging)| store.abandon(staging));
    }
}
