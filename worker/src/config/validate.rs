//! What a type cannot say: ranges, settings that contradict each other or the number of ranks, missing files.

use std::fmt::Display;
use std::ops::RangeInclusive;

use checkpoints::Mode;
use data_pipeline::config::Task;
use data_pipeline::{BatchPlan, MicroBatchLimit};
use ilm_model::config::{HeadKind, LengthLoss, ModelClass, PredictorConfig};

use super::error::ConfigError;
use super::graphs;
use super::tree::{Experiment, OptimizerConfig, Schedule, TrainerConfig};
use crate::eval::Report;

/// Everything that a training run on `world_size` ranks needs. Returns warnings, one sentence each.
///
/// # Errors
///
/// The first setting that is out of range, contradicts another or is missing.
pub fn training(experiment: &Experiment, world_size: usize) -> Result<Vec<String>, ConfigError> {
    let mut warnings = settings(experiment)?;
    section(batch_plan(experiment, micro_batch_limit(experiment, None), 0, world_size))?;
    inputs(experiment)?;
    section(experiment.data.validate())?;
    let lanes = experiment.data.canonical_lanes;
    if !experiment.global_batch_size.is_multiple_of(world_size) {
        warnings.push(format!(
            "global_batch_size = {} does not divide by {world_size} ranks: in every step some ranks compute more than others",
            experiment.global_batch_size
        ));
    } else if !lanes.is_multiple_of(world_size) {
        let (fewest, most) = (lanes / world_size, lanes.div_ceil(world_size));
        warnings.push(format!(
            "data.canonical_lanes = {lanes} does not divide by {world_size} ranks: some compute {most} rows where others compute \
             {fewest}; a new run on so many is faster with data.canonical_lanes={}",
            lanes.next_multiple_of(world_size)
        ));
    }
    monitor(experiment)?;
    warnings.extend(worst_is_kept(experiment));
    if experiment.trainer.val_check_interval.is_none() && experiment.checkpoint.keep_best > 0 {
        warnings.push(
            "trainer.val_check_interval is not set, so there is no validation whose best checkpoint could be kept \
             (checkpoint.keep_best)"
                .to_owned(),
        );
    }
    let text = experiment.data.task == Task::Text;
    if text && experiment.trainer.val_check_interval.is_some() && experiment.data.validation.is_none() {
        warnings.push("data.validation is not set, so there is no validation during training".to_owned());
    }
    Ok(warnings)
}

/// The settings by themselves, whatever the job. Returns warnings, one sentence each.
///
/// # Errors
///
/// The first setting that is out of range or contradicts another.
pub fn settings(experiment: &Experiment) -> Result<Vec<String>, ConfigError> {
    optional(experiment.per_device_batch_size, |rows| at_least("per_device_batch_size", rows, 1))?;
    at_least("global_batch_size", experiment.global_batch_size, 1)?;
    at_least("block_size", experiment.block_size, 2)?;
    optional(experiment.input_block_size, |size| at_least("input_block_size", size, 2))?;
    at_least("data.canonical_lanes", experiment.data.canonical_lanes, 1)?;
    section(experiment.model.validate())?;
    section(experiment.loss.validate_for(&experiment.model))?;
    optimizer(&experiment.optimizer)?;
    lr_scheduler(experiment)?;
    trainer(&experiment.trainer)?;
    section(experiment.checkpoint.validate())?;
    section(experiment.predictor.validate())?;
    lengths(experiment)?;
    Ok(warnings(experiment))
}

/// Whether the files that training reads are named. Star graphs are generated and need none.
fn inputs(experiment: &Experiment) -> Result<(), ConfigError> {
    let data = &experiment.data;
    if data.task == Task::Star {
        return Ok(());
    }
    let has_rows = data.train.is_some() || !data.mixture.is_empty();
    let needed = [("data.train", has_rows), ("data.tokenizer", data.tokenizer.is_some())];
    let missing: Vec<&str> = needed.iter().filter_map(|(key, is_set)| (!is_set).then_some(*key)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let verb = if missing.len() == 1 { "is" } else { "are" };
    let arguments = missing.iter().map(|key| format!("{key}=PATH")).collect::<Vec<_>>().join(" ");
    Err(ConfigError::Missing { keys: format!("{} {verb}", missing.join(" and ")), arguments })
}

/// How large a micro-batch may be when it may have that many visible tokens.
pub fn micro_batch_limit(experiment: &Experiment, visible_tokens: Option<usize>) -> MicroBatchLimit {
    MicroBatchLimit { rows: experiment.per_device_batch_size.unwrap_or(usize::MAX), visible_tokens }
}

/// What one rank of `world_size` takes of every global batch, in micro-batches within `limit`.
///
/// # Errors
///
/// More ranks than lanes.
pub fn batch_plan(
    experiment: &Experiment,
    limit: MicroBatchLimit,
    rank: usize,
    world_size: usize,
) -> Result<BatchPlan, data_pipeline::Error> {
    BatchPlan::new(limit, rank, world_size, experiment.data.canonical_lanes)
}

/// The rules that a section's own crate checks.
fn section<T, E: Display>(checked: Result<T, E>) -> Result<(), ConfigError> {
    checked.map(drop).map_err(|error| ConfigError::Section(error.to_string()))
}

fn optimizer(optimizer: &OptimizerConfig) -> Result<(), ConfigError> {
    at_least("optimizer.lr", optimizer.lr, 0.0)?;
    at_least("optimizer.weight_decay", optimizer.weight_decay, 0.0)?;
    for beta in optimizer.betas {
        require((0.0..1.0).contains(&beta), "optimizer.betas", beta, "at least 0 and below 1")?;
    }
    positive("optimizer.eps", optimizer.eps)
}

fn lr_scheduler(experiment: &Experiment) -> Result<(), ConfigError> {
    let schedule = &experiment.lr_scheduler;
    at_least("lr_scheduler.num_cycles", schedule.num_cycles, 0.0)?;
    optional(schedule.fraction_warmup_steps, |part| {
        within("lr_scheduler.fraction_warmup_steps", part, 0.0..=1.0)
    })
}

fn trainer(trainer: &TrainerConfig) -> Result<(), ConfigError> {
    at_least("trainer.max_steps", trainer.max_steps, 1)?;
    positive("trainer.gradient_clip_val", trainer.gradient_clip_val)?;
    optional(trainer.ema_decay, |decay| within("trainer.ema_decay", decay, 0.0..=1.0))?;
    at_least("trainer.log_every_n_steps", trainer.log_every_n_steps, 1)?;
    optional(trainer.val_check_interval, |steps| at_least("trainer.val_check_interval", steps, 1))?;
    optional(trainer.max_tokens_per_micro_batch, |tokens| {
        at_least("trainer.max_tokens_per_micro_batch", tokens, 1)
    })?;
    optional(trainer.checksum_every_n_steps, |steps| at_least("trainer.checksum_every_n_steps", steps, 1))?;
    optional(trainer.skip_spikes_above, |bound| positive("trainer.skip_spikes_above", bound))?;
    optional(trainer.threads, |threads| at_least("trainer.threads", threads, 1))?;
    at_least("trainer.collective_timeout_secs", trainer.collective_timeout_secs, 1)?;
    at_least("trainer.reduce_bucket_mib", trainer.reduce_bucket_mib, 1)
}

/// Checkpoints can only be compared by a figure that validations during training give.
fn monitor(experiment: &Experiment) -> Result<(), ConfigError> {
    let Some(name) = &experiment.checkpoint.monitor else { return Ok(()) };
    let figures = Report::figures(experiment.data.task);
    if figures.contains(&name.as_str()) {
        return Ok(());
    }
    let figures = figures.join(", ");
    conflict(format!(
        "checkpoint.monitor = \"{name}\" is no figure of the validation; choose one of {figures}"
    ))
}

/// A warning of a mode that takes the worst checkpoints for the best.
fn worst_is_kept(experiment: &Experiment) -> Option<String> {
    let name = experiment.checkpoint.monitor.as_ref()?;
    // Tasks without answers have losses only.
    let is_loss = Report::figures(Task::Text).contains(&name.as_str());
    let (kept, other) = match (is_loss, experiment.checkpoint.mode) {
        (true, Mode::Max) => ("highest", "min"),
        (false, Mode::Min) => ("lowest", "max"),
        _ => return None,
    };
    Some(format!(
        "the checkpoints with the {kept} {name} are kept as the best; set checkpoint.mode={other} for the others"
    ))
}

/// Every position that training or prediction can reach must be in the model's table.
fn lengths(experiment: &Experiment) -> Result<(), ConfigError> {
    let prompt_is_open = experiment.data.task == Task::Star && experiment.input_block_size.is_none();
    if prompt_is_open && experiment.model.max_length.is_none() {
        return conflict(
            "the longest star-graph prompt is unknown; set input_block_size or model.max_length".to_owned(),
        );
    }
    let positions = experiment.max_length();
    let fits = |length: usize| i64::try_from(length).is_ok_and(|length| length <= positions);
    let row = experiment.row_length();
    if !fits(row) {
        return conflict(format!(
            "model.max_length = {positions} is below the longest row, {row} tokens (input_block_size + block_size); \
             raise it or leave it unset"
        ));
    }
    let generated_row = graphs::longest_row(experiment);
    if prompt_is_open && graphs::are_generated(&experiment.data) && !fits(generated_row) {
        return conflict(format!(
            "model.max_length = {positions} is below the longest row of generated star graphs, {generated_row} tokens: \
             without input_block_size no prompt is cut; raise it or set input_block_size"
        ));
    }
    match experiment.predictor.max_length {
        Some(length) if !fits(length) => conflict(format!(
            "predictor.max_length = {length} is above the {positions} tokens that the model has positions for; lower \
             it, or set model.max_length = {length}"
        )),
        _ => Ok(()),
    }
}

fn warnings(experiment: &Experiment) -> Vec<String> {
    let mut warnings = Vec::new();
    let schedule = &experiment.lr_scheduler;
    let warm_up = match (schedule.num_warmup_steps, schedule.fraction_warmup_steps) {
        (Some(steps), _) if steps > 0 => Some(format!("lr_scheduler.num_warmup_steps = {steps}")),
        (None, Some(part)) if part > 0.0 => Some(format!("lr_scheduler.fraction_warmup_steps = {part}")),
        _ => None,
    };
    if let (Schedule::Constant, Some(warm_up)) = (schedule.name, warm_up) {
        warnings.push(format!(
            "{warm_up} has no effect on the schedule \"constant\"; use lr_scheduler.name=constant_with_warmup to warm up"
        ));
    }
    if let (Some(steps), Some(part)) = (schedule.num_warmup_steps, schedule.fraction_warmup_steps) {
        warnings.push(format!(
            "lr_scheduler.num_warmup_steps = {steps} wins over lr_scheduler.fraction_warmup_steps = {part}"
        ));
    }
    match (experiment.data.task, experiment.input_block_size) {
        (Task::Text, Some(size)) => {
            warnings.push(format!(
                "input_block_size = {size} only lengthens the position table: text has no prompts"
            ));
        }
        (Task::Star, _) => warnings.extend(graphs::warnings(experiment)),
        (Task::Text, None) => {}
    }
    warnings.extend(untrained_head(experiment));
    warnings.extend(unused_precision(&experiment.predictor));
    warnings
}

/// Warns of a head that prediction asks although nothing has trained it.
fn untrained_head(experiment: &Experiment) -> Option<String> {
    let (loss, class) = (&experiment.loss, experiment.model.class);
    let is_headless = |class: &ModelClass| class.head() == HeadKind::None;
    if is_headless(&class) {
        return None;
    }
    let cause = match loss.length_loss {
        LengthLoss::None => "loss.length_loss = \"none\"",
        _ if loss.length_loss_weight == 0.0 => "loss.length_loss_weight = 0",
        _ => return None,
    };
    let headless: Vec<&str> = ModelClass::ALL.into_iter().filter(is_headless).map(ModelClass::key).collect();
    Some(format!(
        "{cause} does not train the head of model.class = \"{}\", which says when a generated text is complete; train \
         it, or take a class without a head ({})",
        class.key(),
        headless.join(", ")
    ))
}

/// Warns of a precision that nothing is computed in.
fn unused_precision(predictor: &PredictorConfig) -> Option<String> {
    let is_unused = predictor.use_high_precision && predictor.second_sampling_method.is_none();
    is_unused.then(|| {
        "predictor.use_high_precision = true has no effect without predictor.second_sampling_method, whose scores of \
         positions are all that is computed in f64"
            .to_owned()
    })
}

fn optional<T>(
    value: Option<T>,
    check: impl FnOnce(T) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    value.map_or(Ok(()), check)
}

fn at_least<T: PartialOrd + Display>(key: &'static str, value: T, least: T) -> Result<(), ConfigError> {
    let rule = format!("at least {least}");
    require(value >= least, key, value, &rule)
}

fn within(key: &'static str, value: f64, range: RangeInclusive<f64>) -> Result<(), ConfigError> {
    let rule = format!("from {} to {}", range.start(), range.end());
    require(range.contains(&value), key, value, &rule)
}

fn positive(key: &'static str, value: f64) -> Result<(), ConfigError> {
    require(value > 0.0, key, value, "above 0")
}

fn require(holds: bool, key: &'static str, value: impl Display, rule: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Range { key, value: value.to_string(), rule: rule.to_owned() })
}

fn conflict(sentence: String) -> Result<(), ConfigError> {
    Err(ConfigError::Conflict(sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_give_some_ranks_more_rows_are_warned_of() {
        let settings = ["data.train=a", "data.tokenizer=b", "global_batch_size=768"].map(String::from);
        let experiment = crate::config::load("owt_ilm", &settings, None).unwrap().experiment;
        let warned = |world_size| {
            let warnings = training(&experiment, world_size).unwrap();
            warnings.into_iter().find(|warning| warning.contains("data.canonical_lanes"))
        };
        assert_eq!(warned(32), None);
        let warning = warned(48).unwrap();
        assert!(warning.contains("some compute 2 rows where others compute 1"), "{warning}");
        assert!(warning.ends_with("data.canonical_lanes=96"), "{warning}");
    }

    fn warned(changes: &[&str]) -> Vec<String> {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        settings(&crate::config::load("text_ilm", &changes, None).unwrap().experiment).unwrap()
    }

    #[test]
    fn a_head_that_nothing_trains_is_warned_of() {
        for (setting, said) in [
            ("loss.length_loss=none", "loss.length_loss = \"none\""),
            ("loss.length_loss_weight=0", "loss.length_loss_weight = 0"),
        ] {
            let warnings = warned(&[setting]);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            let said = format!("{said} does not train the head of model.class = \"rotary_stopping\", ");
            assert!(warnings[0].starts_with(&said), "{warnings:?}");
            assert!(warnings[0].ends_with("(rotary_base, rotary_ilm, rotary_it, gpt2_base, gpt2_ilm)"));
        }
        assert_eq!(warned(&["model.class=rotary_ilm", "loss.length_loss=none"]), [""; 0]);
    }

    #[test]
    fn a_mode_that_keeps_the_worst_checkpoint_is_warned_of() {
        let warned = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            worst_is_kept(&crate::config::load("star_hard_ilm", &changes, None).unwrap().experiment)
        };
        assert_eq!(warned(&[]), None);
        assert_eq!(warned(&["checkpoint.monitor=exact_match", "checkpoint.mode=max"]), None);
        let lowest = "the checkpoints with the lowest exact_match are kept as the best; set checkpoint.mode=max for the others";
        assert_eq!(warned(&["checkpoint.monitor=exact_match"]).unwrap(), lowest);
        assert!(warned(&["checkpoint.mode=max"]).unwrap().contains("the highest loss"));
    }

    #[test]
    fn precision_without_a_use_is_warned_of() {
        let precise = "predictor.use_high_precision=true";
        assert_eq!(warned(&[precise]), [""; 0]);
        let warnings = warned(&[precise, "predictor.second_sampling_method="]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("predictor.use_high_precision = true has no effect without "));
    }
}
