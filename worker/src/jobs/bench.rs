//! `ilm-worker bench`: how fast training and its parts are on this machine.

use std::time::Duration;

use crate::bench::{Bench, BenchError, Case, Group, quick, table};
use crate::cli::{BenchArgs, PrecisionArg};
use crate::comm::{Collectives, LaunchEnv, connect};
use crate::{exit, say, threads};

/// Rounds of a quick look.
const QUICK_REPEATS: usize = 1;

/// Runs the job; the result is the exit code.
///
/// # Errors
/// Mistakes of the user that show before the ranks connect. Later errors end the process and its peers here.
pub fn bench(args: &BenchArgs) -> anyhow::Result<i32> {
    if let Some(path) = &args.table {
        let lines = std::fs::read_to_string(path)
            .map_err(|reason| BenchError::Table { path: path.display().to_string(), reason })?;
        say!("{}", table(&lines)?);
        return Ok(exit::OK);
    }
    let launch = LaunchEnv::detect();
    let (rank, world_size) = launch.as_ref().map_or((0, 1), |env| (env.rank, env.world_size));
    // Opened one after the other when it is measured; here, so that a mistake shows before the ranks connect.
    let plan = plan(args, world_size)?;
    let first = plan.first().map(|(_, source)| source.open(args)).transpose()?;
    let Some(experiment) = first.map(|case| case.experiment) else { return Ok(exit::OK) };
    let timeout = Duration::from_secs(experiment.trainer.collective_timeout_secs);
    let mut comm = connect(launch.as_ref(), timeout)?;
    measure(args, &plan, experiment.trainer.threads, &mut *comm)
        .or_else(|error| exit::fail(&error, rank, world_size))
}

fn measure(
    args: &BenchArgs,
    plan: &[(Group, Source)],
    threads: Option<usize>,
    comm: &mut dyn Collectives,
) -> anyhow::Result<i32> {
    let threads = threads::threads_per_rank(comm, threads)?;
    threads::set_threads(threads);
    let repeats = if args.quick { QUICK_REPEATS } else { args.repeats };
    let mut bench = Bench { comm, threads, repeats, seconds: args.seconds, quick: args.quick };
    for (group, source) in plan {
        group.measure(&mut bench, &source.open(args)?)?;
    }
    Ok(exit::OK)
}

/// What a case is made of.
struct Source {
    /// None: the experiment of the command line.
    case: Option<String>,
    precision: &'static str,
}

impl Source {
    fn open(&self, args: &BenchArgs) -> anyhow::Result<Case> {
        match (&self.case, &args.experiment) {
            (None, Some(experiment)) => {
                let dir = args.config_dir.config_dir.as_deref();
                Case::of_experiment(experiment, self.precision, &args.overrides, dir)
            }
            (case, _) => Case::named(case.as_deref().unwrap_or_default(), self.precision, &args.overrides),
        }
    }
}

/// Everything that is to be measured, in order.
fn plan(args: &BenchArgs, ranks: usize) -> anyhow::Result<Vec<(Group, Source)>> {
    let precisions: &[&str] = match args.precision {
        Some(PrecisionArg::Fp32) => &["fp32"],
        Some(PrecisionArg::Bf16) => &["bf16"],
        // The setting wins over what a case stands for, so one turn is enough.
        None if args.overrides.iter().any(|setting| setting.starts_with("trainer.precision")) => &["fp32"],
        None => &["bf16", "fp32"],
    };
    let mut plan = Vec::new();
    for group in args.group.groups(ranks) {
        for case in cases(args, group)? {
            let source = |&precision| (group, Source { case: case.clone(), precision });
            plan.extend(precisions.iter().map(source));
        }
    }
    Ok(plan)
}

/// The names of a group's cases; none stands for the experiment of the command line.
fn cases(args: &BenchArgs, group: Group) -> anyhow::Result<Vec<Option<String>>> {
    if args.experiment.is_some() {
        return Ok(vec![None]);
    }
    if !args.case.is_empty() {
        return Ok(args.case.iter().cloned().map(Some).collect());
    }
    let mut names: Vec<String> = Vec::new();
    for &name in group.cases() {
        let name = if args.quick { quick(name)? } else { name.to_owned() };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names.into_iter().map(Some).collect())
}
