//! `ilm-worker prepare`: the data of an experiment as Parquet files of token ids.

use anyhow::bail;
use data_pipeline::{
    HoldOut, LengthRule, PrepareOptions, PrepareReport, Split, Task, materialise, prepare as prepare_text,
};

use crate::cli::{PrepareArgs, PrepareSplitArg, PrepareTextArgs, RuleArg};
use crate::comm::LaunchEnv;
use crate::config::{self, Experiment};
use crate::exit;
use crate::say;
use crate::signals::StopRequest;
use crate::telemetry::JobProgress;
use crate::threads::processors;

/// Writes the splits into the output folder; the result is the exit code.
///
/// # Errors
/// If there are several ranks, the experiment has nothing to prepare, its data cannot be read, or the disk refuses.
pub fn prepare(args: &PrepareArgs) -> anyhow::Result<i32> {
    refuse_ranks("prepare")?;
    let named = &args.experiment;
    let resolved = config::load(&named.experiment, &named.overrides, named.config_dir.config_dir.as_deref())?;
    let config = &resolved.experiment;
    config.data.validate()?;
    match config.data.task {
        Task::Star => graphs(config, args),
        Task::Text => texts(config, args),
    }
}

/// A job that works with threads of one process and writes into one place.
pub(super) fn refuse_ranks(job: &str) -> anyhow::Result<()> {
    match LaunchEnv::detect() {
        Some(launch) if launch.world_size > 1 => bail!(
            "{job} is one process with threads, and {} were started; start it without mpirun or srun, or on one rank",
            launch.world_size
        ),
        _ => Ok(()),
    }
}

fn graphs(config: &Experiment, args: &PrepareArgs) -> anyhow::Result<i32> {
    let PrepareTextArgs { split, rule, hold_out, row_group_rows, threads } = args.text;
    if split.is_some()
        || rule.is_some()
        || hold_out.is_some()
        || row_group_rows.is_some()
        || threads.is_some()
    {
        bail!(
            "--split, --rule, --hold-out, --row-group-rows and --threads are for texts; leave them out for graphs"
        );
    }
    for file in materialise(&config.data.star, config.seed, &args.output)? {
        say!("{}", file.display());
    }
    Ok(exit::OK)
}

fn texts(config: &Experiment, args: &PrepareArgs) -> anyhow::Result<i32> {
    let progress = JobProgress::new(StopRequest::install()?.request());
    let options = PrepareOptions {
        output: args.output.clone(),
        rule: match args.text.rule.unwrap_or(RuleArg::Keep) {
            RuleArg::Keep => LengthRule::Keep,
            RuleArg::Split => LengthRule::Split(config.block_size),
            // CLS and BOS take a place each.
            RuleArg::Cut => LengthRule::Cut(config.block_size.saturating_sub(2)),
        },
        hold_out: args.text.hold_out.map(|rows| HoldOut { rows, seed: config.seed }),
        row_group_rows: args.text.row_group_rows.unwrap_or(1000),
        threads: args.text.threads.unwrap_or_else(processors),
    };
    for split in splits(config, &args.text)? {
        let report = prepare_text(&config.data, split, &options, &progress)?;
        progress.finish();
        say!("{}: {}", split.name(), summary(&report));
        if report.stopped {
            say!("stopped by a signal; start again to go on");
            return Ok(exit::PREEMPTED);
        }
    }
    say!("written to {}", args.output.display());
    Ok(exit::OK)
}

/// The splits that are written.
fn splits(config: &Experiment, args: &PrepareTextArgs) -> anyhow::Result<Vec<Split>> {
    let holds_out = args.hold_out.is_some();
    let is_there =
        |split: &Split| config.data.location(*split).is_some() || (holds_out && *split != Split::Test);
    let splits: Vec<Split> = match args.split {
        Some(PrepareSplitArg::Train) if holds_out => vec![Split::Train, Split::Validation],
        Some(_) if holds_out => {
            bail!("--hold-out draws from the train split, which --split leaves out; give one of the two")
        }
        Some(PrepareSplitArg::Train) => vec![Split::Train],
        Some(PrepareSplitArg::Validation) => vec![Split::Validation],
        Some(PrepareSplitArg::Test) => vec![Split::Test],
        None => Split::ALL.into_iter().filter(is_there).collect(),
    };
    if splits.is_empty() {
        bail!("none of data.train, data.validation and data.test is set; give data.train=PATH");
    }
    Ok(splits)
}

/// A report in words; what did not happen is not told.
fn summary(report: &PrepareReport) -> String {
    let mut parts = vec![format!(
        "{} files, {} rows, {} tokens, {:.1} MB",
        report.files,
        report.rows_written,
        report.tokens,
        report.bytes as f64 / 1e6
    )];
    for (count, what) in [
        (report.finished_before, "files were finished before"),
        (report.long_rows, "rows were too long"),
        (report.bad_rows, "bad rows were left out"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join("; ")
}
