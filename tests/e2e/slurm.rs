//! The worker under a real Slurm: a throw-away cluster of two virtual nodes on this machine.

use std::path::Path;
use std::process::Command;

use crate::program::{Finished, checkpoint_bits, last_step, mpirun, program, run, tiny_star};

const STEPS: [&str; 2] = ["trainer.max_steps=6", "checkpoint.every_n_steps=3"];

/// Runs a command on a cluster that lives for its sake only.
fn on_cluster(folder: &Path, arguments: &[&str]) -> Finished {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/slurm-one-machine.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("with").arg(folder.join("cluster")).args(arguments).arg(program("ilm-worker"));
    command.args(tiny_star(&folder.join("run"))).args(STEPS);
    run(&mut command)
}

#[test]
fn srun_starts_ranks_that_equal_mpiruns() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    on_cluster(folder.path(), &["srun", "-K", "-N2", "-n2", "--mpi=pmix"]).expect(0);
    assert_eq!(last_step(&folder.path().join("run")), 6);

    let reference = folder.path().join("reference");
    run(mpirun(2).args(tiny_star(&reference)).args(STEPS)).expect(0);
    assert!(
        checkpoint_bits(&reference, 6) == checkpoint_bits(&folder.path().join("run"), 6),
        "the states differ"
    );
}

/// A batch script of the launcher, run to its end on a cluster of its own.
fn batch_job(folder: &Path, set: &str) {
    let script = folder.join("job.sh");
    let mut launch = Command::new(program("ilm-launch"));
    launch.args(["slurm", "train", "--cluster", "one_machine", "--set", set, "-o"]).arg(&script);
    launch.args(["--set", "log=job.log", "--"]).args(tiny_star(&folder.join("run"))).args(STEPS);
    run(&mut launch).expect(0);
    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/slurm-one-machine.sh");
    let programs = program("ilm-worker").parent().expect("programs lie in a folder").display().to_string();
    let mut job = Command::new("bash");
    job.arg(cluster).arg("with").arg(folder.join("cluster")).args(["sbatch", "-W"]).arg(&script);
    job.current_dir(folder).env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()));
    let finished = run(&mut job);
    let log = std::fs::read_to_string(folder.join("job.log")).unwrap_or_default();
    assert_eq!(finished.code, 0, "{}{log}", finished.stderr);
    assert_eq!(last_step(&folder.join("run")), 6, "{log}");
    assert!(folder.join("run/logs/rank-1.log").exists());
}

#[test]
fn a_batch_script_trains_on_two_nodes_under_srun() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    batch_job(folder.path(), "launcher=srun");
}

#[test]
fn a_batch_script_trains_on_two_nodes_under_mpirun() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    batch_job(folder.path(), "launcher=mpirun");
}

#[test]
fn ranks_without_a_connection_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Without PMIx every rank would be alone in a world of one, and all would write the same run directory.
    let finished = on_cluster(folder.path(), &["srun", "-K", "-N1", "-n2", "--mpi=none"]);
    assert_ne!(finished.code, 0, "{}", finished.stdout);
    assert_eq!(last_step(&folder.path().join("run")), 0);
}
