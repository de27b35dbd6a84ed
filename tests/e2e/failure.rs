//! What ends a run at its start or in its middle: ranks that are not there, a rank that hangs, a loss that is not finite, a second
//! run in the same directory.

use std::path::Path;

use serde_json::Value;

use crate::program::{
    Signal, checkpoint_steps, children, json_lines, kill, last_step, mpirun, mpirun_through, ranks, run,
    start, tiny_star, wait, wait_until, worker,
};

#[test]
fn a_rank_that_hangs_is_noticed_and_ends_the_job() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = mpirun(2);
    command
        .args(tiny_star(folder.path()))
        .args(["trainer.max_steps=1000000", "checkpoint.every_n_steps=1000000"]);
    let child = start(command.arg("trainer.collective_timeout_secs=2"));
    wait_until("some steps", || last_step(folder.path()) >= 3);
    let ranks = children(child.id());
    kill(Signal::SIGSTOP, ranks[1]);
    let finished = wait(child).expect(5);
    let sentence = finished.stderr.lines().find(|line| line.starts_with("error: "));
    let sentence = sentence.expect("the waiting rank says what it waits for");
    assert!(sentence.contains("has waited") && sentence.contains("collective '"), "{sentence}");
    wait_until("all ranks to end", || ranks.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists()));
}

#[test]
fn ranks_do_not_wait_for_ever_for_one_that_never_connects() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // It stands for a rank that a dead file system holds before it has told anybody of itself.
    let script = r#"[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec sleep 1000; exec "$0" "$@""#;
    let mut command = mpirun_through(2, script);
    let finished =
        run(command.args(tiny_star(folder.path())).arg("trainer.collective_timeout_secs=2")).expect(5);
    assert!(
        finished.stderr.contains("error: rank 0 has waited 2s for the other 1 to connect"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_before_anything_is_spoilt() {
    for world_size in [1, 2] {
        let mut command = ranks(world_size);
        let folder = tempfile::tempdir().expect("a temporary folder");
        command.args(["--experiment", "star_easy_ilm", "model=rotary_tiny", "trainer.threads=1"]);
        command.args(["per_device_batch_size=4", "global_batch_size=8", "trainer.max_steps=100"]);
        command.args(["optimizer.lr=1e30", "checkpoint.every_n_steps=1", "--run-dir"]).arg(folder.path());
        let finished = run(&mut command).expect(6);
        let sentence = finished.sentence();
        assert!(sentence.contains("step ") && sentence.contains("optimizer.lr"), "{sentence}");
        // The first update is the last one; three steps are skipped, and all of it is saved.
        assert!(sentence.contains("the 3 steps before it were skipped"), "{sentence}");
        assert_eq!(checkpoint_steps(folder.path()).last(), Some(&last_step(folder.path())));
        let skipped = json_lines(&folder.path().join("skipped.jsonl"));
        assert_eq!(skipped.len(), 3);
        let dumped = last_step(folder.path()) + 1;
        let dump = folder.path().join(format!("dumps/step-{dumped:09}"));
        assert!(finished.stdout.contains(&dump.display().to_string()), "{}", finished.stdout);
        let rows = |rank: usize| json_lines(&dump.join(format!("rank-{rank}.jsonl")));
        let rows: Vec<_> = (0..world_size).flat_map(rows).collect();
        assert_eq!(rows.len(), 8, "the whole batch, whoever had it");
        let replay = ["replay", "--json", "--step", &dumped.to_string(), "--run-dir"];
        let replayed = run(worker().args(replay).arg(folder.path())).expect(0).stdout;
        let replayed = replayed.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        assert_eq!(replayed.collect::<Vec<_>>(), rows, "who had which row is known later");
        assert!(dump.join("rank-0.txt").exists());
    }
}

#[test]
fn two_runs_in_one_directory_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let endless = ["trainer.max_steps=1000000", "checkpoint.every_n_steps=1000000"];
    let first = start(worker().args(tiny_star(folder.path())).args(endless));
    wait_until("some steps", || last_step(folder.path()) >= 3);
    run(worker().args(tiny_star(folder.path())).args(endless)).expect(4).sentence();
    run(worker().args(tiny_star(folder.path())).args(endless).arg("--fresh")).expect(4).sentence();
    kill(Signal::SIGTERM, first.id());
    wait(first).expect(75);
}

#[test]
fn ranks_that_mpi_does_not_connect_end_the_run_with_one_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = worker();
    // As another MPI's launcher would start the first of two ranks.
    command.args(tiny_star(folder.path())).envs([("PMI_SIZE", "2"), ("PMI_RANK", "0")]);
    let finished = run(command.arg("trainer.max_steps=1")).expect(5);
    assert!(finished.sentence().contains("PMI_SIZE started 2 ranks, but MPI connects 1"), "{finished:?}");
}
