//! `ilm-launch` with the real worker.

use std::path::Path;
use std::process::Command;

use crate::program::{
    Signal, checkpoint_steps, is_alive, kill, last_step, program, run, start, tiny_star, wait, wait_until,
    workers_below,
};

fn launch(ranks: usize, arguments: &[String]) -> Command {
    let mut command = Command::new(program("ilm-launch"));
    command.args(["run", "-n", &ranks.to_string(), "--"]).args(arguments);
    command
}

fn training(run_dir: &Path, steps: u64) -> Vec<String> {
    let mut arguments = tiny_star(run_dir);
    arguments.extend([format!("trainer.max_steps={steps}"), "checkpoint.every_n_steps=1000".into()]);
    arguments
}

#[test]
fn a_launched_run_trains_and_leaves_logs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(&mut launch(2, &training(folder.path(), 4))).expect(0);
    assert_eq!(checkpoint_steps(folder.path()), [4]);
    assert!(folder.path().join("logs/rank-1.log").exists());
}

#[test]
fn the_workers_exit_code_is_the_launchers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut arguments = training(folder.path(), 4);
    arguments.push("optimiser.lr=1".into());
    let finished = run(&mut launch(2, &arguments)).expect(2);
    assert!(finished.stderr.contains("did you mean 'optimizer.lr'"), "{}", finished.stderr);
}

#[test]
fn sigterm_to_the_launcher_saves_and_exits_75() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = start(&mut launch(2, &training(folder.path(), 100_000)));
    wait_until("some steps", || last_step(folder.path()) >= 5);
    kill(Signal::SIGTERM, child.id());
    wait(child).expect(75);
    assert_eq!(checkpoint_steps(folder.path()), [last_step(folder.path())]);
}

#[test]
fn the_launchers_own_signal_saves_whatever_stop_signals_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut arguments = training(folder.path(), 100_000);
    arguments.push(r#"trainer.stop_signals=["USR2"]"#.into());
    let child = start(&mut launch(2, &arguments));
    wait_until("some steps", || last_step(folder.path()) >= 5);
    kill(Signal::SIGTERM, child.id());
    wait(child).expect(75);
    assert_eq!(checkpoint_steps(folder.path()), [last_step(folder.path())]);
}

#[test]
fn a_launch_watches_the_run_directory_of_an_experiment_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut arguments = training(folder.path(), 2);
    let named = arguments.iter().position(|argument| argument == "--run-dir").expect("it is named");
    arguments.drain(named..named + 2);
    run(launch(1, &arguments).current_dir(folder.path())).expect(0);
    let run_dir = folder.path().join("runs/star_easy_ilm");
    assert_eq!(checkpoint_steps(&run_dir), [2]);
    assert!(run_dir.join("logs/rank-0.log").exists() && run_dir.join("launcher.json").exists());
}

#[test]
fn a_killed_rank_is_named_and_ends_the_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = start(&mut launch(2, &training(folder.path(), 100_000)));
    wait_until("some steps", || last_step(folder.path()) >= 5);
    let workers = workers_below(child.id());
    assert_eq!(workers.len(), 2);
    kill(Signal::SIGKILL, workers[1]);
    let finished = wait(child);
    assert_eq!(finished.code, 128 + 9, "{}", finished.stderr);
    assert!(finished.stderr.contains("failed first"), "{}", finished.stderr);
    wait_until("the other rank to end", || workers.iter().all(|id| !is_alive(*id)));
}
