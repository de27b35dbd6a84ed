//! The steps of one start of a run, and what happens between them: showing, saving, validating, stopping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data_pipeline::{
    BatchPlan, DescribeOptions, Error, Next, Schedule, StepBatch, TrainLoader, describe_batch,
};

use super::Run;
use super::ledger::Ledger;
use super::saves::{Saves, TooLate};
use crate::comm::Collectives;
use crate::eval::{self, EvalContext, Outcome, Report};
use crate::exit;
use crate::jobs::rows::RankBatch;
use crate::jobs::shared_rows::end_by_data;
use crate::json_lines::JsonLines;
use crate::say;
use crate::signals::LEAD_VARIABLE;
use crate::telemetry::{self, Progress, StepRecord};
use crate::train::{
    NonFinite, RankFlags, Reducer, Saver, StepFigures, TrainState, balance_ranks, digest_step, train_step,
};
use crate::vitals::{self, Phase};

/// The steps of one start of a run.
pub(super) struct Steps<'a, 'b> {
    pub(super) run: &'a Run<'a>,
    pub(super) plan: BatchPlan,
    pub(super) comm: &'b mut dyn Collectives,
    pub(super) reducer: Reducer,
    pub(super) saver: Saver,
    pub(super) saves: Saves,
}

impl Steps<'_, '_> {
    /// Runs to the last step or to a signal; the result is the exit code.
    pub(super) fn run(&mut self, state: &mut TrainState) -> anyhow::Result<i32> {
        let config = self.run.config();
        let data = self.run.data();
        let schedule = data.schedule()?;
        let mut loader = data.loader(self.plan, self.comm.world_size(), schedule.clone(), state.position)?;
        let mut view = self.view(state.step)?;
        let first_step = state.step;
        vitals::step(first_step);
        let _phase = vitals::phase(Phase::Train);
        let finished = self.is_finished(state, &schedule);
        if self.owes_validation(state.step, finished, view.as_ref())?
            && let Some(code) = self.validate(state, view.as_mut())?
        {
            return Ok(code);
        }
        while state.step < config.trainer.max_steps {
            let started = Instant::now();
            let (batch, failed) = match self.next_batch(&mut loader, state.position) {
                Ok(Some(batch)) => (batch, None),
                Ok(None) => break,
                Err(error) => (without_rows(state.position), Some(error)),
            };
            let data_wait = started.elapsed();
            let batch = balance_ranks(self.comm, &config.trainer, loader.repacker(), batch)?;
            if state.step == first_step {
                self.print_first(&batch);
            }
            let flags = RankFlags {
                data_wait,
                ready_steps: loader.figures().ready_steps,
                stop: Some(&self.run.stop),
                failed: failed.is_some(),
                saving: self.saver.is_busy(),
                ..RankFlags::default()
            };
            let figures = train_step(state, config, self.comm, &mut self.reducer, &batch, flags);
            let figures = figures.or_else(|error| self.keep_what_helps(error, &batch))?;
            vitals::step(state.step);
            if figures.global.failed {
                return self.fail(state, view.as_ref(), failed);
            }
            if figures.global.given_up {
                return self.stop(state, view.as_ref());
            }
            let digest = digest_step(state, self.comm, &mut self.reducer, config, &batch, &figures)?;
            let duration = started.elapsed();
            let finished = self.is_finished(state, &schedule);
            let stops = figures.global.stop && !finished;
            let due = self.saves_at(state.step, finished);
            let at_once = finished || !config.checkpoint.asynchronous;
            self.save_in_background(state, due && !at_once && !stops, figures.global.saving)?;
            if let Some(view) = &mut view {
                // A step is on record before its checkpoint is valid, so that no resumed run lacks a record.
                view.show(&self.record(state, &figures, duration));
                view.ledger.write(&digest, &batch, &figures);
            }
            if stops {
                return self.stop(state, view.as_ref());
            }
            if due && at_once {
                self.save_standing(state, finished)?;
            }
            self.tell_of_save(view.as_ref());
            if self.validates_at(state.step, finished)
                && let Some(code) = self.validate(state, view.as_mut())?
            {
                return Ok(code);
            }
        }
        self.reducer.finish_gather()?;
        vitals::end();
        if let Some(view) = &view {
            view.progress.finish();
            say!("finished at step {}", state.step);
        }
        Ok(exit::OK)
    }

    /// Whether no step is left.
    fn is_finished(&self, state: &TrainState, schedule: &Schedule) -> bool {
        state.step >= self.run.config().trainer.max_steps || schedule.step(state.position).is_none()
    }

    /// This rank's part of the next step, if there is one. Who is told to stop while data is not there, or cannot have it,
    /// takes part in the step with nothing, and gives it up: the others may be waiting for him in it.
    fn next_batch(&self, loader: &mut TrainLoader, position: u64) -> Result<Option<StepBatch>, Error> {
        let _phase = vitals::phase(Phase::Data);
        Ok(match loader.next_unless(&|| self.run.stop.is_set())? {
            Next::Item(batch) => Some(batch),
            Next::End => None,
            Next::Stopped => Some(without_rows(position)),
        })
    }

    /// Ends this start of the run after a signal, once what is done is saved.
    fn stop(&mut self, state: &TrainState, view: Option<&View>) -> anyhow::Result<i32> {
        self.save_what_is_done(state, view)?;
        if view.is_some() {
            say!("stopped by a signal after step {}; start again to go on", state.step);
        }
        vitals::end();
        Ok(exit::PREEMPTED)
    }

    /// Ends the run because a rank cannot have its data, once what is done is saved; `failed` is the error of this rank.
    fn fail(
        &mut self,
        state: &TrainState,
        view: Option<&View>,
        failed: Option<Error>,
    ) -> anyhow::Result<i32> {
        let saved = self.save_what_is_done(state, view);
        if view.is_some() {
            if let Err(refused) = saved {
                // The first error is the one to end with.
                telemetry::warn(&refused.to_string());
            }
            let is_saved = state.step > 0 && self.saves.newest == state.step;
            let kept = if is_saved { ", which is saved" } else { "" };
            say!("a rank cannot get its data: the run ends after step {}{kept}", state.step);
        }
        end_by_data(self.comm, failed)
    }

    /// Saves the state after the last whole step, if that is not saved yet and there is time.
    fn save_what_is_done(&mut self, state: &TrainState, view: Option<&View>) -> anyhow::Result<()> {
        self.reducer.finish_gather()?;
        self.saver.finish(self.comm, self.run.config())?;
        self.tell_of_save(view);
        let mut too_late = None;
        if self.saves.newest != state.step {
            too_late = self.saves.too_late(&self.run.stop, self.comm)?;
            if too_late.is_none() {
                self.save_standing(state, true)?;
                self.tell_of_save(view);
            }
        }
        if let Some(view) = view {
            view.progress.finish();
            if let Some(TooLate { takes, left }) = too_late {
                telemetry::warn(&format!(
                    "no checkpoint is begun: saving took up to {takes:.1} s, and {left:.1} s are left of the \
                     {LEAD_VARIABLE} seconds after the signal; the newest checkpoint is that of step {}",
                    self.saves.newest
                ));
            }
        }
        Ok(())
    }

    /// Saves while training stands still. If that fails, only what is not the last of this start can be made up for later.
    fn save_standing(&mut self, state: &TrainState, is_last: bool) -> anyhow::Result<()> {
        let _phase = vitals::phase(Phase::Save);
        let started = Instant::now();
        let config = self.run.config();
        if is_last {
            self.saver.save_now(self.comm, config, state)?;
        } else {
            self.saver.begin(self.comm, config, state)?;
        }
        self.saves.stall += started.elapsed();
        Ok(())
    }

    /// Shows the first micro-batch as a person would want to see it.
    fn print_first(&self, batch: &StepBatch) {
        if self.comm.rank() > 0 || !self.run.config().data.print_batch {
            return;
        }
        if let Some(micro_batch) = batch.micro_batches.first() {
            let tokenizer = &self.run.assembly.tokenizer;
            say!("{}", describe_batch(micro_batch, tokenizer, &DescribeOptions::default()));
        }
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
            ledger: Ledger::open(&self.run.run_dir, self.run.data(), step)?,
            recent_step_s: None,
        }))
    }

    fn record(&mut self, state: &TrainState, figures: &StepFigures, duration: Duration) -> StepRecord {
        let global = &figures.global;
        let step_s = duration.as_secs_f64();
        StepRecord {
            step: state.step,
            epoch: state.position as f64 / self.run.dataset.len() as f64,
            loss: figures.loss(),
            token_ce: global.token_ce,
            stop_loss: global.stop_loss,
            grad_norm: figures.grad_norm,
            lr: figures.lr,
            examples_per_s: global.examples / step_s,
            tokens_per_s: global.visible / step_s,
            useful_positions: global.visible / global.computed,
            data_wait_s: global.data_wait.as_secs_f64(),
            data_ready_steps: global.ready_steps,
            skipped_rows: global.skipped_rows,
            update_skipped: figures.skipped.is_some(),
            comm_exposed_s: global.comm_exposed.as_secs_f64(),
            rank_wait_s: global.rank_wait.as_secs_f64(),
            step_s,
            checkpoint_stall_s: std::mem::take(&mut self.saves.stall).as_secs_f64(),
            eta_s: 0.0,
        }
    }

    /// What is done for checkpoints between two steps: bringing one that is under way forward, and beginning one.
    fn save_in_background(&mut self, state: &TrainState, begins: bool, saving: bool) -> anyhow::Result<()> {
        let config = self.run.config();
        let started = Instant::now();
        if !saving {
            self.saver.advance(self.comm, config)?;
        }
        if begins {
            self.saver.begin(self.comm, config, state)?;
        }
        self.saves.stall += started.elapsed();
        Ok(())
    }

    /// A run that diverges, on all ranks alike, keeps the checkpoint that is being written, and the batch it ended at.
    fn keep_what_helps<T>(&mut self, error: anyhow::Error, batch: &StepBatch) -> anyhow::Result<T> {
        let Some(&NonFinite { step, .. }) = error.downcast_ref() else { return Err(error) };
        self.saver.finish(self.comm, self.run.config())?;
        let folder = self.run.run_dir.dump(step);
        let rank = self.comm.rank();
        let tokenizer = &self.run.assembly.tokenizer;
        let written = RankBatch { step, rank, micro_batches: &batch.micro_batches, tokenizer }.write(&folder);
        if let Err(refused) = written {
            // The first error is the one to end with.
            telemetry::warn(&refused.to_string());
        }
        // Rank 0 may end the others only when all have written.
        self.comm.barrier("dump")?;
        if rank == 0 {
            say!("the batch of step {step} is in {}", folder.display());
        }
        Err(error)
    }

    fn tell_of_save(&mut self, view: Option<&View>) {
        let Some(saved) = self.saver.take_saved() else { return };
        self.saves.note(&saved);
        if let Some(view) = view {
            let [stood, took] = [saved.timings.stage, saved.timings.total()].map(|time| time.as_secs_f64());
            view.progress.say(&format!(
                "saved a checkpoint of step {} in {took:.2} s, of which training stood still for {stood:.2} s",
                saved.step
            ));
        }
    }

    /// Every so many steps, and in the end; and where a validation will tell a checkpoint from worse ones.
    fn saves_at(&self, step: u64, finished: bool) -> bool {
        let checkpoint = &self.run.config().checkpoint;
        let is_judged = checkpoint.monitor.is_some() && self.validates_at(step, finished);
        finished || is_judged || step.is_multiple_of(checkpoint.every_n_steps)
    }

    /// Every so many steps, and in the end; where there is something to measure the model on.
    fn validates_at(&self, step: u64, finished: bool) -> bool {
        let every = self.run.config().trainer.val_check_interval;
        self.run.validation.is_some() && (finished || every.is_some_and(|every| step.is_multiple_of(every)))
    }

    /// Whether the start before ended between the checkpoint of this step and its validation; asked on all ranks together.
    fn owes_validation(&mut self, step: u64, finished: bool, view: Option<&View>) -> anyhow::Result<bool> {
        if step == 0 || !self.validates_at(step, finished) {
            return Ok(false);
        }
        let mut lacks = [f64::from(u8::from(view.is_some_and(|view| !view.validation.reaches(step))))];
        self.comm.broadcast("validation is owed", lacks[..].as_mut().into())?;
        Ok(lacks[0] > 0.0)
    }

    /// Measures the model; the result is the exit code if the run ends with that, by a signal or because a rank cannot have its rows.
    fn validate(&mut self, state: &mut TrainState, view: Option<&mut View>) -> anyhow::Result<Option<i32>> {
        let report = match self.measure(state)? {
            None => return Ok(None),
            Some(Outcome::Done(report)) => report,
            Some(Outcome::Stopped) => return self.stop(state, view.as_deref()).map(Some),
            Some(Outcome::Failed(error)) => return self.fail(state, view.as_deref(), error).map(Some),
        };
        if let Some(view) = view {
            let step = state.step;
            view.progress.say(&format!("validation at step {step}: {report}"));
            view.validation.note(&report.of_step(step));
            if let Some(name) = &self.run.config().checkpoint.monitor
                && let Some(value) = report.figure(name)
            {
                self.saver.record_figure(step, name, value);
            }
        }
        Ok(None)
    }

    /// The model's figures, if there is something to measure it on.
    fn measure(&mut self, state: &mut TrainState) -> anyhow::Result<Option<Outcome<Report>>> {
        let run = self.run;
        let Some(dataset) = &run.validation else { return Ok(None) };
        let _phase = vitals::phase(Phase::Validate);
        let dataset = Arc::clone(dataset);
        let context = EvalContext { config: run.config(), assembly: &run.assembly, dataset, stop: &run.stop };
        let Self { comm, reducer, .. } = self;
        state.with_averaged_weights(reducer, |model| eval::evaluate(&context, model, *comm)).map(Some)
    }
}

/// A rank's part of a step that it has no rows of.
fn without_rows(position: u64) -> StepBatch {
    StepBatch { position, next_position: position, micro_batches: Vec::new(), skipped: 0 }
}

/// What rank 0 shows and writes.
struct View {
    progress: Progress,
    metrics: JsonLines,
    validation: JsonLines,
    ledger: Ledger,
    recent_step_s: Option<f64>,
}

impl View {
    fn show(&mut self, record: &StepRecord) {
        const PAST: f64 = 0.95;
        let recent =
            self.recent_step_s.map_or(record.step_s, |past| PAST * past + (1.0 - PAST) * record.step_s);
        self.recent_step_s = Some(recent);
        let record =
            StepRecord { eta_s: self.progress.remaining(record.step) as f64 * recent, ..record.clone() };
        self.metrics.note(&record);
        self.progress.show(&record);
    }
}
