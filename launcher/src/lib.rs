//! Starts the ranks of `ilm-worker`, keeps their output readable, passes signals on, and ends with one exit code.
//!
//! The way of a run: [`args`] (the command line) → [`plan::RunPlan`] (every decision made and checked) → [`run`], which
//! makes one [`attempt`] after another for as long as [`restart`] allows. `mpirun` does not start the worker itself: it starts this same executable once per rank as
//! a wrapper ([`rank`]), which starts the worker, writes its log and reports lines and the ending to the launcher
//! through a named pipe, from other machines by TCP ([`event`], [`session`], [`remote`]). So what is known of a rank does not depend on how an MPI
//! implementation words its messages, and another way of starting ranks needs nothing but the wrapper. What a worker says
//! about itself lies in its [`heartbeat`]; the wrapper notices when that stands still. Of a run that ended badly [`trace`] says, by that
//! and by the [`flight`] records, where its ranks were.
//!
//! # Exit codes
//!
//! The code is that of the rank that failed first, 75 if no rank failed and one was preempted, else 0; after restarts it
//! is that of the last attempt.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | every rank ended well |
//! | 1 | `mpirun`, `srun`, a host or the launcher itself failed, and no rank did (another code of `mpirun` comes through) |
//! | 2 | usage or configuration, of the launcher or of the worker |
//! | 3 | data |
//! | 4 | checkpoint |
//! | 5 | communication between ranks, a rank that hangs, or ranks that do not start |
//! | 6 | non-finite loss |
//! | 7 | `verify-resume` and `replay`: not what the run recorded |
//! | 75 | preempted: a checkpoint was saved, or there was nothing to save yet; the same command goes on |
//! | 101 | panic |
//! | 128 + n | killed by signal n, or ended without saving on a second signal n |

pub mod args;
pub mod attempt;
pub mod error;
pub mod event;
pub mod flight;
pub mod heartbeat;
pub mod hosts;
pub mod leftovers;
pub mod machine;
pub mod mpirun;
pub mod notes;
pub mod outcome;
pub mod output;
pub mod plan;
pub mod process;
pub mod rank;
pub mod record;
pub mod remote;
pub mod restart;
pub mod run;
pub mod run_dir;
pub mod session;
pub mod slurm;
pub mod status;
pub mod trace;
pub mod worker_args;

use clap::Parser;
use std::process::ExitCode;

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    let result = match args::Args::parse().command {
        args::Command::Run(args) => plan::RunPlan::new(args).and_then(run::run),
        args::Command::Status(args) => status::status(&args),
        args::Command::Slurm(args) => slurm::slurm(&args),
        args::Command::Rank(args) => rank::run(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::complain(format_args!("ilm-launch: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
