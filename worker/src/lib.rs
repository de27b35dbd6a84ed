//! The worker: one rank of a training or evaluation job.
//!
//! Data flows one way: configuration, data, model, gradients, collectives, optimizer, telemetry. The model's mathematics
//! and the file formats live in crates of their own.

pub mod assembly;
pub mod bench;
pub mod cli;
pub mod comm;
pub mod config;
pub mod device;
pub mod eval;
pub mod exit;
pub mod generate;
pub mod host;
pub mod jobs;
pub mod json_lines;
pub mod judge;
pub mod memory;
pub mod optim;
pub mod partial;
pub mod presets;
pub mod reference;
pub mod run_dir;
pub mod scale;
pub mod signals;
pub mod telemetry;
pub mod threads;
pub mod train;
pub mod vitals;

use std::ffi::OsString;

use cli::Command;

/// Runs the command that the arguments name; the result is the exit code.
pub fn run(arguments: Vec<OsString>) -> i32 {
    memory::set_up_heap();
    // SAFETY: this is the first thing that the process does, on its only thread.
    unsafe { presets::make() };
    comm::abort_on_panic();
    telemetry::init_logging(comm::LaunchEnv::detect().is_none_or(|env| env.rank == 0));
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match &cli.command {
        Command::Train(args) => jobs::train(args),
        Command::Evaluate(args) => jobs::evaluate(args),
        Command::Generate(args) => jobs::generate(args),
        Command::Judge(args) => jobs::judge(args),
        Command::Import(args) => jobs::import(args),
        Command::Export(args) => jobs::export(args),
        Command::Checkpoints(command) => jobs::checkpoints(command),
        Command::Experiments(args) => jobs::experiments(args),
        Command::Config(args) => jobs::show_config(args),
        Command::Plan(args) => jobs::plan(args),
        Command::Prepare(args) => jobs::prepare(args),
        Command::TrainTokenizer(args) => jobs::train_tokenizer(args),
        Command::VerifyResume(args) => jobs::verify_resume(args),
        Command::Replay(args) => jobs::replay(args),
        Command::Bench(args) => jobs::bench(args),
    };
    result.unwrap_or_else(|error| {
        let launch = comm::LaunchEnv::detect();
        let (rank, world_size) = launch.map_or((0, 1), |env| (env.rank, env.world_size));
        exit::fail(&error, rank, world_size)
    })
}

/// Prints help on standard output and mistakes on standard error; under a launcher one rank speaks for all.
fn usage(error: &clap::Error) -> i32 {
    if comm::LaunchEnv::detect().is_none_or(|env| env.rank == 0) {
        // A closed output is no reason to fail differently.
        let _ = error.print();
    }
    error.exit_code()
}
