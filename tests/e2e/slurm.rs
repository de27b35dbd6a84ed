//! The worker under a real Slurm: a throw-away cluster of two virtual nodes on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::unistd::Uid;
use tempfile::TempDir;

use crate::program::{
    Finished, Signal, checkpoint_bits, figures, kill, last_step, mpirun, processes_with, program, run,
    tiny_star, wait_until, wake,
};

const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/slurm-one-machine.sh");

/// Seconds of work, so that the run is still there when its first steps have been seen.
const STEPS_OF_A_HELD_RUN: u64 = 4000;

/// Each question is a process and a connection to the controller, on the cores that the ranks compute on.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

const STEPS: [&str; 2] = ["trainer.max_steps=6", "checkpoint.every_n_steps=3"];

/// Whether the daemons are installed and may be started.
fn slurm_is_here() -> bool {
    let here = Path::new("/usr/sbin/slurmctld").exists() && Uid::effective().is_root();
    if !here {
        eprintln!("skipped: a cluster needs root, and Slurm, which scripts/setup.sh --test installs");
    }
    here
}

/// Runs a command on a cluster that lives for its sake only.
fn on_cluster(folder: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new("bash");
    command.arg(CLUSTER).arg("with").arg(folder.join("cluster")).args(arguments).arg(program("ilm-worker"));
    command.args(tiny_star(&folder.join("run"))).args(STEPS);
    run(&mut command)
}

#[test]
fn srun_starts_ranks_that_equal_mpiruns() {
    if !slurm_is_here() {
        return;
    }
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

/// A cluster on which batch scripts run the programs under test, until it is dropped.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    /// `None` where the machine has none.
    fn start(configuration: &str) -> Option<Self> {
        if !slurm_is_here() {
            return None;
        }
        let cluster = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        run(cluster.script("start").env("S1_EXTRA_CONF", configuration)).expect(0);
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, what: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(CLUSTER).arg(what).arg(self.path("cluster"));
        command
    }

    /// Runs a command that talks to this cluster; what it prints.
    fn ask(&self, name: &str, arguments: &[&str]) -> String {
        self.run(name, arguments).expect(0).stdout.trim().to_string()
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Finished {
        let programs = program("ilm-worker").with_file_name("").display().to_string();
        let mut command = Command::new(name);
        command.args(arguments).current_dir(self.folder.path());
        command.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()));
        command.env("SLURM_CONF", self.path("cluster/etc/slurm.conf"));
        command.env("OMPI_MCA_oob_tcp_if_include", "lo").env("OMPI_MCA_btl_tcp_if_include", "lo");
        run(&mut command)
    }

    /// Submits a job of `ilm-launch slurm`, whose number this is.
    fn submit(&self, kind: &str, options: &[&str], worker_args: &[String]) -> String {
        let mut arguments = vec!["slurm", kind, "--cluster", "one_machine", "--submit"];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(worker_args.iter().map(String::as_str));
        self.ask("ilm-launch", &arguments)
    }

    fn shows(&self, job: &str, what: &str) -> bool {
        self.ask("scontrol", &["show", "job", job]).contains(what)
    }

    /// Waits until the job's description fits. What is tried is the job: a question that the busy cluster leaves without
    /// an answer is asked again.
    fn wait_for(&self, job: &str, what: &str, fits: impl Fn(&str) -> bool) {
        wait_until(what, || {
            sleep(BETWEEN_QUESTIONS);
            let answer = self.run("scontrol", &["show", "job", job]);
            if answer.code != 0 {
                eprintln!("scontrol: {}: {}", answer.status, answer.stderr);
            }
            answer.code == 0 && fits(&answer.stdout)
        });
    }

    fn log(&self, job: &str) -> String {
        std::fs::read_to_string(self.path(&format!("slurm-{job}.out"))).unwrap_or_default()
    }

    /// Starts a training run on both nodes and stops its ranks between two steps, so that it cannot end too early.
    fn hold_a_run(&self, launcher: &str, steps: u64) -> (String, Vec<u32>) {
        let run_dir = self.path("run");
        let job = self.submit("train", &["--set", launcher], &training(&run_dir, steps));
        wait_until("some steps", || last_step(&run_dir) >= 5);
        let ranks = processes_with(&run_dir.display().to_string(), "ilm-worker");
        assert_eq!(ranks.len(), 2, "{}", self.log(&job));
        ranks.iter().for_each(|id| kill(Signal::SIGSTOP, *id));
        (job, ranks)
    }

    /// The job has been queued again once and has come to its end, with the bits of a run of plain mpirun.
    fn assert_went_on(&self, job: &str, steps: u64) {
        self.wait_for(job, "the job to complete", |said| said.contains("JobState=COMPLETED"));
        let log = self.log(job);
        assert!(self.shows(job, "Restarts=1"), "{log}");
        assert!(log.contains("is requeued and goes on from there") && log.contains("resuming from"), "{log}");
        let reference = self.path("reference");
        run(mpirun(2).args(training(&reference, steps))).expect(0);
        let bits = |run_dir: &Path| checkpoint_bits(run_dir, steps);
        assert!(bits(&reference) == bits(&self.path("run")), "the states differ");
        assert_eq!(figures(&reference, "loss"), figures(&self.path("run"), "loss"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        run(&mut self.script("clean"));
    }
}

fn training(run_dir: &Path, steps: u64) -> Vec<String> {
    let mut arguments = tiny_star(run_dir);
    arguments.extend([format!("trainer.max_steps={steps}"), "checkpoint.every_n_steps=1000".into()]);
    arguments.extend(["data.star.validation_size=8", "data.star.test_size=8"].map(String::from));
    arguments
}

/// Jobs of partition `urgent` take the nodes of others, which have a minute to save.
const PREEMPTION: &str = "PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10";

#[test]
fn a_preempted_run_goes_on_when_the_nodes_are_free_and_is_evaluated_at_its_end() {
    let Some(cluster) = Cluster::start(PREEMPTION) else { return };
    let (job, ranks) = cluster.hold_a_run("launcher=srun", STEPS_OF_A_HELD_RUN);
    let each = ["--each", "--split validation", "--each", "--split test", "--after", &job];
    let evaluations =
        cluster.submit("evaluate", &each, &["--run-dir".into(), cluster.path("run").display().to_string()]);
    let urgent = ["--parsable", "-p", "urgent", "-N2", "--exclusive", "--wrap", "touch urgent"];
    let urgent = cluster.ask("sbatch", &urgent);
    cluster.wait_for(&job, "the preemption", |said| !said.contains("PreemptTime=None"));
    ranks.iter().for_each(|id| wake(*id));
    cluster.wait_for(&urgent, "the urgent job to complete", |said| said.contains("JobState=COMPLETED"));
    assert!(cluster.path("urgent").exists());
    cluster.assert_went_on(&job, STEPS_OF_A_HELD_RUN);
    for split in ["validation", "test"] {
        let report = cluster.path(&format!("run/evaluations/step-{STEPS_OF_A_HELD_RUN:09}-{split}.json"));
        wait_until(&format!("evaluation {evaluations}"), || report.exists());
    }
}

#[test]
fn a_run_that_is_warned_of_its_time_limit_goes_on_under_mpirun() {
    let Some(cluster) = Cluster::start("") else { return };
    let (job, ranks) = cluster.hold_a_run("launcher=mpirun", STEPS_OF_A_HELD_RUN);
    cluster.ask("scancel", &["--batch", "--signal=USR1", &job]);
    ranks.iter().for_each(|id| kill(Signal::SIGCONT, *id));
    cluster.assert_went_on(&job, STEPS_OF_A_HELD_RUN);
}

#[test]
fn ranks_without_a_connection_are_refused() {
    if !slurm_is_here() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Without PMIx every rank would be alone in a world of one, and all would write the same run directory.
    let finished = on_cluster(folder.path(), &["srun", "-K", "-N1", "-n2", "--mpi=none"]);
    assert_ne!(finished.code, 0, "{}", finished.stdout);
    assert_eq!(last_step(&folder.path().join("run")), 0);
}
