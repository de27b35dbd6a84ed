//! A rank that stops or dies is named with the place where it was, and the run goes on as if nothing had been.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::program::{
    Signal, checkpoint_bits, heartbeat, is_alive, kill, last_step, mpirun, program, run, start, tiny_star,
    variable, wait, wait_until, worker, workers_below,
};
use crate::slow_disk::SlowDisk;

const STEPS: u64 = 400;
/// Variable that marks all processes of one test.
const MARK: &str = "ILM_E2E_MARK";

fn training(run_dir: &Path) -> Vec<String> {
    let mut arguments = tiny_star(run_dir);
    arguments.extend([format!("trainer.max_steps={STEPS}"), "checkpoint.every_n_steps=25".into()]);
    arguments
}

/// With one restart.
fn launch(run_dir: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(program("ilm-launch"));
    command.args(["run", "-n", "2", "--max-restarts", "1", "--restart-delay", "0", "--"]);
    command.args(training(run_dir)).args(extra).env(MARK, run_dir);
    command
}

/// Processes that have the mark of this run; zombies have no environment any more.
fn marked(run_dir: &Path) -> Vec<u32> {
    let mark = run_dir.display().to_string();
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|&id| variable(id, MARK).as_deref() == Some(&mark)).collect()
}

/// The run's undisturbed twin.
fn reference(run_dir: &Path) {
    run(mpirun(2).args(training(run_dir))).expect(0);
}

#[test]
fn a_stopped_rank_is_named_with_its_step_and_collective_and_the_run_is_restarted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reference_dir, disturbed) = (folder.path().join("reference"), folder.path().join("disturbed"));
    reference(&reference_dir);
    let child = start(&mut launch(&disturbed, &["trainer.collective_timeout_secs=2"]));
    wait_until("some steps", || last_step(&disturbed) >= 30);
    kill(Signal::SIGSTOP, workers_below(child.id())[1]);
    let finished = wait(child).expect(0);

    let said = |text: &str| assert!(finished.stderr.contains(text), "no '{text}' in\n{}", finished.stderr);
    said("rank 0 failed first: exit code 5");
    said("ilm-launch: rank 1 is furthest behind, the others waited for it; its last record, ");
    said("starting again in 0 s");
    let line =
        finished.stderr.lines().find(|line| line.contains("furthest behind")).expect("the line is there");
    let after = |text: &str| line.split_once(text).map(|(_, rest)| rest.to_owned());
    let step: u64 = after(", step ").and_then(|rest| rest.split(',').next()?.parse().ok()).expect("a step");
    assert!(step >= 30, "{line}");
    assert!(after(" collective ").is_some_and(|rest| rest.contains("(number ")), "{line}");

    let log = fs::read_to_string(disturbed.join("logs/rank-0.log")).expect("a log");
    assert!(log.contains("rank 0: phase train") && log.contains("waiting for other ranks"), "{log}");
    assert!(log.contains(" (steps.rs:") && log.contains("ilm-exchange ("), "threads and functions: {log}");
    let bits = checkpoint_bits(&disturbed, STEPS);
    assert!(checkpoint_bits(&reference_dir, STEPS) == bits, "the final states differ");
}

#[test]
fn a_rank_that_hangs_in_work_of_its_own_says_where_when_another_waits_in_vain() {
    let disk = SlowDisk::new();
    let mut command = disk.training(2);
    let child = start(command.args(["trainer.collective_timeout_secs=2", "trainer.max_steps=100000"]));
    wait_until("some steps", || last_step(&disk.run_dir()) >= 3);
    disk.hang_reads();
    let finished = wait(child).expect(5);
    let said = |text: &str| assert!(finished.stderr.contains(text), "no '{text}' in\n{}", finished.stderr);
    said("error: rank 0 has waited");
    said("rank 1: another rank has waited too long, so all ranks report");
    said("rank 1: phase data, step ");
    said(", at work itself; the stacks of its threads:");
    said("pread64");
}

#[test]
fn a_killed_rank_costs_seconds_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (reference_dir, disturbed) = (folder.path().join("reference"), folder.path().join("disturbed"));
    reference(&reference_dir);
    let child = start(&mut launch(&disturbed, &[]));
    wait_until("some steps", || last_step(&disturbed) >= 30);
    let workers = workers_below(child.id());
    let job = variable(workers[1], "OMPI_MCA_ess_base_jobid").and_then(|job| job.parse::<u32>().ok());
    let job = format!(".{:x}.", job.expect("mpirun says which job this is"));
    let killed = Instant::now();
    kill(Signal::SIGKILL, workers[1]);
    wait_until("all ranks to end", || workers.iter().all(|id| !is_alive(*id)));
    // Far more than it takes on a quiet machine, far less than any deadline.
    assert!(killed.elapsed() < Duration::from_secs(60), "{:?}", killed.elapsed());
    let finished = wait(child).expect(0);

    let said = |text: &str| assert!(finished.stderr.contains(text), "no '{text}' in\n{}", finished.stderr);
    said("rank 1 failed first: killed by signal 9 (SIGKILL)");
    said("ilm-launch: its last record, ");
    said("starting again in 0 s because rank 1 failed first");
    assert!(checkpoint_bits(&reference_dir, STEPS) == checkpoint_bits(&disturbed, STEPS), "other states");
    assert_eq!(marked(&disturbed), Vec::<u32>::new(), "processes are left");
    let segments = fs::read_dir("/dev/shm").expect("/dev/shm is there");
    let left: Vec<_> = segments.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    assert!(!left.iter().any(|name| name.contains(&job)), "{job} is left in {left:?}");
}

#[test]
fn one_rank_has_a_heartbeat_too_and_a_job_on_its_checkpoint_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let old = r#"{"rank":7,"pid":1,"host":"gone","phase":"save","step":9,"updated_unix_ms":1000}"#;
    fs::create_dir(folder.path().join("heartbeats")).expect("a folder");
    fs::write(folder.path().join("heartbeats/rank-7.json"), old).expect("a file");
    let mut command = worker();
    command.args(tiny_star(folder.path())).args(["trainer.max_steps=1000000", "checkpoint.every_n_steps=50"]);
    let child = start(&mut command);
    wait_until("a heartbeat of a later step", || heartbeat(folder.path(), 0)["step"].as_u64() > Some(20));
    assert!(heartbeat(folder.path(), 7).is_null(), "that of a rank which is no more is gone");
    let beat = heartbeat(folder.path(), 0);
    assert_eq!(beat["pid"], child.id());
    let status = |arguments: &[&str]| {
        let mut command = Command::new(program("ilm-launch"));
        run(command.arg("status").args(arguments).arg("--run-dir").arg(folder.path())).expect(0).stdout
    };
    assert!(status(&["--json"]).contains(r#""state":"running""#));
    kill(Signal::SIGKILL, child.id());
    wait(child);
    assert!(status(&[]).contains("rank 0 gone, heartbeat "), "{}", status(&[]));

    let mut evaluate = worker();
    evaluate.args(["evaluate", "--run-dir"]).arg(folder.path()).arg("data.star.test_size=20");
    run(&mut evaluate).expect(0);
    assert_ne!(heartbeat(folder.path(), 0)["pid"], beat["pid"], "the job has a heartbeat of its own");
}
