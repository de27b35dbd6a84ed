//! One optimizer step: accumulate, reduce, clip, update.

use std::time::Duration;

use data_pipeline::{PackedBatch, StepBatch};
use ilm_model::Batch;
use xxhash_rust::xxh3::xxh3_64;

use super::digest::samples_hash;
use super::guard::{Skip, Verdict};
use super::reducer::Passing;
use super::{Reducer, TrainState};
use crate::comm::{Collectives, CommError, ReduceOp};
use crate::config::Experiment;
use crate::optim::{Ema, Update, clip_factor, learning_rate, squared_norm};
use crate::signals::StopRequest;
use crate::vitals;

/// The loss or the gradient of a step is not finite, nor were those of as many steps before it as may be skipped; the
/// parameters are those before these steps.
#[derive(Debug, thiserror::Error)]
#[error(
    "step {step} gave loss {loss} and gradient norm {grad_norm}, and the {skipped} steps before it were skipped \
     (trainer.max_skipped_steps_in_row allows no more): training cannot go on; the last checkpoint is good (a lower \
     optimizer.lr or a longer warm-up often helps; data.skip_steps='{skip_steps:?}', which counts in the data and from \
     0, leaves out what these steps were given)"
)]
pub struct NonFinite {
    /// The step that would have been finished.
    pub step: u64,
    /// Steps skipped just before it.
    pub skipped: u64,
    /// Its global mean loss.
    pub loss: f64,
    /// Its gradient norm before clipping.
    pub grad_norm: f64,
    /// The value of `data.skip_steps` that leaves out its data and that of the steps skipped just before it.
    pub skip_steps: Vec<String>,
}

/// Figures of a finished step.
#[derive(Debug, Clone, Copy)]
pub struct StepFigures {
    /// Over all ranks.
    pub global: GlobalFigures,
    /// Norm of the mean gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Why the parameters were left as they were, if they were.
    pub skipped: Option<Skip>,
}

impl StepFigures {
    /// Mean loss per example.
    pub fn loss(&self) -> f64 {
        self.global.token_ce + self.global.stop_loss
    }
}

/// Means and totals over the global batch.
#[derive(Debug, Clone, Copy)]
pub struct GlobalFigures {
    /// Mean token loss per example.
    pub token_ce: f64,
    /// Mean stopping loss per example.
    pub stop_loss: f64,
    /// Examples.
    pub examples: f64,
    /// Input positions that held a token.
    pub visible: f64,
    /// Input positions computed.
    pub computed: f64,
    /// Square of the norm of the summed gradient.
    pub squared_norm: f64,
    /// Longest wait for data of any rank.
    pub data_wait: Duration,
    /// Steps that were ready to be taken, on the rank with the fewest.
    pub ready_steps: u64,
    /// Rows that were left out because they cannot be used.
    pub skipped_rows: u64,
    /// See [`samples_hash`]; of all ranks.
    pub samples: u64,
    /// Whether any rank was told to stop.
    pub stop: bool,
    /// Whether any rank was told so before it had computed its part, or has failed: then all leave the step, and nothing has
    /// changed.
    pub given_up: bool,
    /// Whether any rank has failed before it had computed its part.
    pub failed: bool,
    /// Whether any rank was at work for a checkpoint in the background.
    pub saving: bool,
    /// How long the rank that waited least stood still for gradients and parameters of others: the gradients of this step, and the
    /// parameters since the step before. Every rank was there when the last one began to wait, so this is the exchange itself.
    pub comm_exposed: Duration,
    /// The same of the rank that waited most, so with its waiting for slower ranks.
    pub rank_wait: Duration,
}

/// What one rank tells the others beside its sums; the largest value of any rank counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct RankFlags<'a> {
    /// How long it waited for data.
    pub data_wait: Duration,
    /// Further steps that were ready then.
    pub ready_steps: usize,
    /// Tells it to stop, if anything may.
    pub stop: Option<&'a StopRequest>,
    /// Whether it cannot compute its part, because of an error that it ends with once all have left the step.
    pub failed: bool,
    /// Whether it is at work for a checkpoint in the background.
    pub saving: bool,
    /// How long it stood still for gradients and parameters of others; the step itself fills this in.
    pub waited: Duration,
}

/// Sums over the examples of one rank's part of a global batch.
#[derive(Debug, Default)]
struct Sums {
    token_ce: f64,
    stop_loss: f64,
    examples: f64,
    visible: f64,
    computed: f64,
    skipped: f64,
    /// The low and the high half of a hash, so that their sums are exact.
    samples: [f64; 2],
    /// Of the part of the summed gradient that this rank counts.
    squared_norm: f64,
    /// Whether this rank was told to stop before all micro-batches were computed, or has failed.
    given_up: bool,
}

/// Runs one step on this rank's part of a global batch. Gradients are summed over examples and ranks and divided once,
/// by the number of examples of the whole global batch. All ranks have the same figures, so they skip the same steps. A rank
/// that is told to stop before it has computed its part, or has failed, gives the step up, and all ranks leave it together.
/// Updated parameters of other ranks may still be on their way here when it returns, or be here rounded only:
/// [`Reducer::complete_parameters`] gets them.
///
/// # Errors
/// [`NonFinite`], alike on all ranks; failing collectives; batches the model refuses.
pub fn train_step(
    state: &mut TrainState,
    config: &Experiment,
    comm: &mut dyn Collectives,
    reducer: &mut Reducer,
    batch: &StepBatch,
    flags: RankFlags<'_>,
) -> anyhow::Result<StepFigures> {
    let stops = || flags.failed || flags.stop.is_some_and(StopRequest::is_set);
    let mut sums = accumulate(state, config, comm.rank(), reducer, batch, &stops)?;
    reducer.finish_gradients()?;
    sums.squared_norm = squared_norm(state.model.arena().flat_grads(), &state.own)?;
    let global = reduce_figures(comm, &sums, RankFlags { waited: reducer.take_waited(), ..flags })?;

    if global.given_up {
        return Ok(StepFigures { global, grad_norm: 0.0, lr: 0.0, skipped: None });
    }
    let per_example = 1.0 / global.examples.max(1.0);
    let grad_norm = global.squared_norm.sqrt() * per_example;
    let loss = global.token_ce + global.stop_loss;
    let skipped = match state.guard.judge(loss, grad_norm, &config.trainer) {
        Verdict::Update => None,
        Verdict::Skip(reason) => Some(reason),
        Verdict::Stop => return Err(non_finite(state, config, batch, loss, grad_norm).into()),
    };
    let lr = learning_rate(config.optimizer.lr, &config.lr_scheduler, state.step, config.trainer.max_steps);
    // A step whose rows were all left out, which all ranks see alike, changes nothing either.
    if skipped.is_some() || global.examples == 0.0 {
        state.guard.left_out(skipped, batch.position);
    } else {
        let clip = clip_factor(grad_norm, config.trainer.gradient_clip_val);
        let average_weight = state.ema.as_mut().map_or(0.0, Ema::next_weight);
        let step = state.guard.next_update(state.step);
        let update = Update { lr, step, grad_scale: clip * per_example, average_weight };
        update_parameters(state, config, reducer, update)?;
        state.guard.updated(loss, grad_norm);
    }
    state.step += 1;
    state.position = batch.next_position;
    Ok(StepFigures { global, grad_norm, lr, skipped })
}

/// What is said of a step that ends the run.
fn non_finite(
    state: &TrainState,
    config: &Experiment,
    batch: &StepBatch,
    loss: f64,
    grad_norm: f64,
) -> NonFinite {
    let begins = state.guard.row_begins().unwrap_or(batch.position);
    let skip_steps = config.data.skipping(config.global_batch_size, begins..batch.next_position);
    NonFinite { step: state.step + 1, skipped: state.guard.in_row(), loss, grad_norm, skip_steps }
}

/// Forward and backward of every micro-batch of this rank into the flat gradient buffer. The reduction of the last one's
/// gradients begins while they are computed.
fn accumulate(
    state: &mut TrainState,
    config: &Experiment,
    rank: usize,
    reducer: &mut Reducer,
    batch: &StepBatch,
    stops: &dyn Fn() -> bool,
) -> anyhow::Result<Sums> {
    let samples = samples_hash(&batch.micro_batches);
    let samples = [samples & u64::from(u32::MAX), samples >> u32::BITS].map(|half| half as f64);
    let mut sums = Sums { skipped: batch.skipped as f64, samples, given_up: stops(), ..Sums::default() };
    state.model.clear_grads();
    for (index, micro_batch) in batch.micro_batches.iter().enumerate() {
        sums.given_up |= stops();
        if sums.given_up {
            break;
        }
        let dropout_seed = dropout_seed(config.seed, state.step, rank, index);
        let is_last = index + 1 == batch.micro_batches.len();
        let parts = state.model.forward_backward(
            &batch_view(micro_batch),
            &config.loss,
            1.0,
            Some(dropout_seed),
            &mut Passing { reducer, is_last },
        )?;
        sums.token_ce += parts.ce.iter().sum::<f64>();
        sums.stop_loss += parts.length.iter().sum::<f64>();
        sums.examples += micro_batch.rows() as f64;
        sums.visible += micro_batch.visible() as f64;
        sums.computed += parts.computed_positions as f64;
        vitals::tick();
    }
    state.model.settle_grads()?;
    Ok(sums)
}

/// Updates what this rank updates, window by window, and exchanges it while the next window is updated and the next forward pass
/// runs. Who else looks at parameters gets them by [`Reducer::complete_parameters`].
///
/// # Errors
/// If the transport or the device fails.
pub fn update_parameters(
    state: &mut TrainState,
    config: &Experiment,
    reducer: &mut Reducer,
    update: Update,
) -> anyhow::Result<()> {
    let arena = state.model.arena_mut();
    for window in reducer.windows() {
        let flat = arena.update_parts();
        let average = state.ema.as_mut().map(|ema| &mut ema.shadow);
        state.adamw.step(&config.optimizer, update, window.clone(), flat, average)?;
        reducer.begin_gather(window)?;
    }
    if !reducer.overlaps() {
        reducer.finish_gather()?;
    }
    Ok(())
}

/// Means and totals over all ranks.
fn reduce_figures(
    comm: &mut dyn Collectives,
    sums: &Sums,
    flags: RankFlags<'_>,
) -> Result<GlobalFigures, CommError> {
    let Sums { token_ce, stop_loss, examples, visible, computed, skipped, samples, squared_norm, given_up } =
        *sums;
    let [low, high] = samples;
    let mut totals = [token_ce, stop_loss, examples, visible, computed, skipped, squared_norm, low, high];
    comm.all_reduce("step sums", ReduceOp::Sum, totals[..].as_mut().into())?;
    let flag = |set: bool| f64::from(u8::from(set));
    let fewest_ready = -(flags.ready_steps as f64);
    let [data_wait, waited] = [flags.data_wait, flags.waited].map(|time| time.as_secs_f64());
    let stop = flags.stop.is_some_and(StopRequest::is_set);
    let [stop, saving, given_up, failed] = [stop, flags.saving, given_up, flags.failed].map(flag);
    let mut largest = [data_wait, stop, saving, fewest_ready, waited, given_up, failed, -waited];
    comm.all_reduce("step flags", ReduceOp::Max, largest[..].as_mut().into())?;
    let [token_ce, stop_loss, examples, visible, computed, skipped, squared_norm, low, high] = totals;
    let per_example = 1.0 / examples.max(1.0);
    Ok(GlobalFigures {
        token_ce: token_ce * per_example,
        stop_loss: stop_loss * per_example,
        examples,
        visible,
        computed,
        squared_norm,
        data_wait: Duration::from_secs_f64(largest[0]),
        ready_steps: -largest[3] as u64,
        skipped_rows: skipped as u64,
        samples: (low as u64).wrapping_add((high as u64) << u32::BITS),
        stop: largest[1] > 0.0,
        given_up: largest[5] > 0.0,
        failed: largest[6] > 0.0,
        saving: largest[2] > 0.0,
        comm_exposed: Duration::from_secs_f64(-largest[7]),
        rank_wait: Duration::from_secs_f64(largest[4]),
    })
}

/// A pure function of its arguments, so a resumed run draws the same masks.
fn dropout_seed(seed: u64, step: u64, rank: usize, micro_batch: usize) -> u64 {
    let counters = [seed, step, rank as u64, micro_batch as u64].map(u64::to_le_bytes).concat();
    xxh3_64(&[b"dropout".as_slice(), &counters].concat())
}

/// The pipeline's batch as the model wants it.
pub fn batch_view(batch: &PackedBatch) -> Batch<'_> {
    Batch {
        row_ptr: batch.row_ptr(),
        tokens: batch.tokens(),
        positions: batch.positions(),
        cls: batch.cls(),
        tgt_ptr: batch.tgt_ptr(),
        tgt_ids: batch.tgt_ids(),
        tgt_counts: batch.tgt_counts(),
    }
}
