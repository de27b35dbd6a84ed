//! The command line, as clap parses it; nothing here is checked beyond its form.

use crate::status;
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// More ranks than any machine has; what is kept for each of them would not fit in memory at some point.
pub const MOST_RANKS: u64 = 1_000_000;

/// A year; sums of times stay within what clocks can tell.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Starts and watches the ranks of ilm-worker.
#[derive(Debug, Parser)]
#[command(name = "ilm-launch", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start ranks, wait for them, and start them again if that may help.
    ///
    /// SIGUSR1, SIGTERM and SIGINT ask the ranks to save a checkpoint and stop; a second SIGTERM or SIGINT ends
    /// them at once.
    Run(RunArgs),
    /// Say how a run is: ranks, step, speed, loss, checkpoint and last end, from its run directory.
    Status(StatusArgs),
    /// Write a batch script for Slurm, or submit it: training or evaluations.
    Slurm(SlurmArgs),
    /// The wrapper around one rank; `run` has it started by mpirun.
    #[command(hide = true)]
    Rank(RankArgs),
}

/// Arguments of `ilm-launch run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct RunArgs {
    /// Number of ranks [default with --hosts: as many as the list has room for].
    #[arg(short = 'n', long = "ranks", value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(..=MOST_RANKS))]
    pub ranks: Option<usize>,
    /// Machines and the number of ranks on each, such as a:8,b:8. Programs and run directory lie on a file system that
    /// they share. Within a Slurm allocation of several nodes no list is needed.
    #[arg(long, value_name = "LIST")]
    pub hosts: Option<String>,
    /// What starts a command on a machine, called as AGENT HOST COMMAND.
    #[arg(long, value_name = "AGENT", default_value = "ssh")]
    pub agent: PathBuf,
    /// Within a Slurm allocation: start the ranks by srun with this kind of MPI, such as pmix, instead of by mpirun.
    #[arg(long, value_name = "MPI", conflicts_with_all = ["hosts", "mca"])]
    pub srun: Option<String>,
    /// The network interface for all traffic between machines, such as eth0.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// A parameter of Open MPI for mpirun.
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], allow_hyphen_values = true)]
    pub mca: Vec<String>,
    /// Which cores a rank may use.
    #[arg(long, value_enum, default_value_t = CpuBind::None)]
    pub cpu_bind: CpuBind,
    /// Restarts after a killed rank, a hang, failed communication, a panic or a failed mpirun; the worker resumes from
    /// its newest checkpoint. Counted anew whenever a checkpoint was saved. Never after errors of usage, data,
    /// checkpoint or loss, nor when the launcher was told to stop.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_restarts: u32,
    /// Wait before the first restart; each further one without a new checkpoint doubles it, up to five minutes.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub restart_delay: Duration,
    /// Ends the run, with code 5, when not every rank has been started after so long; 0 waits for ever. mpirun does not
    /// notice a host on which its daemon dies before it has reported.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub start_timeout: u64,
    /// Ends the run, with code 5, when the heartbeat of a rank in DIR/heartbeats (DIR: the worker's run directory) has not
    /// changed for so long; 0 never does. Ranks without a heartbeat are not watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub hang_timeout: u64,
    /// The worker; otherwise the ilm-worker beside this executable, otherwise the one in PATH.
    #[arg(long, value_name = "PATH")]
    pub worker: Option<PathBuf>,
    /// Arguments of ilm-worker; with --run-dir DIR or --experiment NAME (DIR: runs/NAME) among them the output of rank K is kept in
    /// DIR/logs/rank-K.log.
    #[arg(last = true, value_name = "WORKER ARGUMENTS")]
    pub worker_args: Vec<OsString>,
}

/// Which cores a rank may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CpuBind {
    /// All of the launcher's; the worker divides them by choosing its number of threads.
    None,
    /// An equal share of whole cores for each rank alone.
    Cores,
}

/// Arguments of the wrapper around one rank.
#[derive(Debug, clap::Args)]
pub struct RankArgs {
    /// The launcher's named pipe, or its addresses.
    #[arg(long)]
    pub events: OsString,
    /// Where `rank-K.log` goes.
    #[arg(long)]
    pub logs: PathBuf,
    /// Gives each rank of a machine cores of its own.
    #[arg(long)]
    pub bind_cores: bool,
    /// Where the worker's heartbeat is.
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// Seconds for which that may stand still.
    #[arg(long, default_value_t = 0)]
    pub hang_timeout: u64,
    /// The worker.
    pub worker: PathBuf,
    /// Its arguments.
    #[arg(last = true)]
    pub worker_args: Vec<OsString>,
}

/// Arguments of `ilm-launch status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Age from which on a heartbeat is stale.
    #[arg(long, value_name = "SECONDS", default_value_t = status::FRESH.as_secs())]
    pub stale_after: u64,
}

/// Arguments of `ilm-launch slurm`.
#[derive(Debug, clap::Args)]
pub struct SlurmArgs {
    /// What the job is for.
    #[command(subcommand)]
    pub job: SlurmJob,
}

/// The kinds of jobs.
#[derive(Debug, Subcommand)]
pub enum SlurmJob {
    /// A training run; stopped before its time limit it is queued again and goes on.
    Train(JobArgs),
    /// Evaluations of a run, as an array if there are several.
    Evaluate(EvaluateJobArgs),
}

/// Arguments of every job.
#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The cluster: a file of configs/cluster, by its name.
    #[arg(long, value_name = "NAME")]
    pub cluster: String,
    /// Folder of your own that has cluster/NAME.toml.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Change a setting of the cluster.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The job's name [default: that of the worker's run directory].
    #[arg(long)]
    pub name: Option<String>,
    /// File to write instead of printing.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Submit the script and print the job's number.
    #[arg(long)]
    pub submit: bool,
    /// Arguments of ilm-worker.
    #[arg(last = true, value_name = "WORKER ARGUMENTS")]
    pub worker_args: Vec<OsString>,
}

/// Arguments of evaluations.
#[derive(Debug, clap::Args)]
pub struct EvaluateJobArgs {
    /// Number of the job, such as a training run, after whose end, good or bad, this may start.
    #[arg(long, value_name = "JOB")]
    pub after: Option<String>,
    /// Further arguments of one evaluation; said several times it makes an array.
    #[arg(long, value_name = "WORKER ARGUMENTS", allow_hyphen_values = true)]
    pub each: Vec<String>,
    /// What every job has.
    #[command(flatten)]
    pub job: JobArgs,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) => Err(format!("more than a year ({} seconds)", LONGEST.as_secs())),
        Err(error) => Err(error.to_string()),
    }
}

const EXIT_CODES: &str = "\
Exit codes: 0 all ranks ended well, 1 mpirun or launcher failed, 2 usage or configuration, 3 data, 4 checkpoint,
5 communication, 6 non-finite loss, 7 not what the run recorded, 75 preempted after saving what there was, 101 panic,
128+n signal n.";
