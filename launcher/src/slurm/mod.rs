//! `ilm-launch slurm`: batch scripts for a cluster described by a few settings, written, printed or submitted.

mod cluster;
mod script;

pub use cluster::{Cluster, Launcher};

use crate::args::{EvaluateJobArgs, SlurmArgs, SlurmJob};
use crate::error::{Error, Result};
use crate::{machine, worker_args};
use script::Script;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Renders a batch script, and prints it, writes it to a file or submits it.
///
/// # Errors
/// A setting is wrong, the file cannot be written, or Slurm refuses the job.
pub fn slurm(args: &SlurmArgs) -> Result<u8> {
    let (job, jobs, after) = match &args.job {
        // The launcher refuses it only once the job runs.
        SlurmJob::Train(job) if worker_args::run_dir(&job.worker_args).is_none() => {
            return Err(Error::NoSharedFolder);
        }
        SlurmJob::Train(job) => (job, vec![words(&job.worker_args)?], None),
        SlurmJob::Evaluate(evaluate) => (&evaluate.job, evaluations(evaluate)?, evaluate.after.as_deref()),
    };
    let cluster = Cluster::load(&job.cluster, job.config_dir.as_deref(), &job.set)?;
    let name = job.name.clone().unwrap_or_else(|| default_name(&job.worker_args));
    let made_by = made_by(args)?;
    let text = Script { name: &name, made_by: &made_by, jobs: &jobs, after }.render(&cluster)?;
    match &job.output {
        Some(path) => fs::write(path, &text).map_err(Error::io("write", path))?,
        // Only the job's number is printed then, for another command to use.
        None if job.submit => {}
        None => print(&text),
    }
    if job.submit { submit(&text) } else { Ok(0) }
}

/// The worker's arguments of each evaluation.
fn evaluations(args: &EvaluateJobArgs) -> Result<Vec<Vec<String>>> {
    let mut common = vec!["evaluate".to_owned()];
    common.extend(words(&args.job.worker_args)?);
    if args.each.is_empty() {
        return Ok(vec![common]);
    }
    let one = |each: &String| {
        let own = shlex::split(each).ok_or_else(|| Error::Unquoted { text: each.clone() })?;
        Ok([common.clone(), own].concat())
    };
    args.each.iter().map(one).collect()
}

fn words(args: &[OsString]) -> Result<Vec<String>> {
    let word =
        |arg: &OsString| arg.to_str().map(str::to_owned).ok_or_else(|| Error::NotText { arg: arg.clone() });
    let words: Vec<String> = args.iter().map(word).collect::<Result<_>>()?;
    if words.iter().any(|word| word == "--fresh") { Err(Error::FreshJob) } else { Ok(words) }
}

/// The run directory's own name.
fn default_name(args: &[OsString]) -> String {
    let run_dir = worker_args::run_dir(args);
    let name = run_dir.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "ilm".to_owned())
}

/// The command line of this process, without what does not change the script.
fn made_by(args: &SlurmArgs) -> Result<String> {
    let (kind, job) = match &args.job {
        SlurmJob::Train(job) => ("train", job),
        SlurmJob::Evaluate(evaluate) => ("evaluate", &evaluate.job),
    };
    let mut line =
        vec!["ilm-launch".to_owned(), "slurm".into(), kind.into(), "--cluster".into(), job.cluster.clone()];
    let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
    if let Some(dir) = &job.config_dir {
        option("--config-dir", dir.display().to_string());
    }
    job.set.iter().for_each(|set| option("--set", set.clone()));
    job.name.iter().for_each(|name| option("--name", name.clone()));
    if let SlurmJob::Evaluate(evaluate) = &args.job {
        evaluate.after.iter().for_each(|after| option("--after", after.clone()));
        evaluate.each.iter().for_each(|each| option("--each", each.clone()));
    }
    line.push("--".into());
    line.extend(words(&job.worker_args)?);
    script::quote(&line)
}

fn print(text: &str) {
    // A reader that stops early has what it wants.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn submit(text: &str) -> Result<u8> {
    let sbatch = machine::find_in_path("sbatch").ok_or(Error::NoSbatch)?;
    let mut command = Command::new(&sbatch);
    command.arg("--parsable").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", &sbatch))?;
    if let Some(mut script) = child.stdin.take() {
        script.write_all(text.as_bytes()).map_err(Error::io("write to", &sbatch))?;
    }
    let output = child.wait_with_output().map_err(Error::io("wait for", &sbatch))?;
    if !output.status.success() {
        return Err(Error::NotSubmitted);
    }
    print(&String::from_utf8_lossy(&output.stdout));
    Ok(0)
}
