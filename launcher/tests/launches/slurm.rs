//! Batch scripts: the shipped ones are current, all are clean, and they do under a real Slurm what they promise.

use crate::support::{Bench, LAUNCHER, make_executable, send, text, wait_until};
use nix::unistd::Uid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn render(arguments: &[&str]) -> String {
    let output = Command::new(LAUNCHER).arg("slurm").args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_shipped_scripts_are_what_their_commands_write() {
    let mut scripts = 0;
    for entry in fs::read_dir(root().join("scripts/slurm")).unwrap() {
        let path = entry.unwrap().path();
        let shipped = fs::read_to_string(&path).unwrap();
        let command =
            shipped.lines().nth(1).unwrap().strip_prefix("# Written by: ilm-launch slurm ").unwrap();
        let words = shlex::split(command).unwrap();
        let written = render(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(written == shipped, "{} is old: write it again by the command in it", path.display());
        scripts += 1;
    }
    assert_eq!(scripts, 3);
}

#[test]
fn every_kind_of_script_is_clean() {
    if Command::new("shellcheck").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: shellcheck is not installed; scripts/setup.sh --test does that");
        return;
    }
    let bench = Bench::new("");
    for launcher in ["launcher=srun", "launcher=mpirun"] {
        for container in ["container=", "container=apptainer exec --nv ilm.sif"] {
            for kind in [&["train"][..], &["evaluate", "--each", "--split test", "--each", "'a b'"]] {
                for more in ["requeue=true", "requeue=false", r#"setup=["module load openmpi"]"#] {
                    let set = ["--cluster", "generic", "--set", launcher, "--set", container, "--set", more];
                    let script = bench.path().join("script.sh");
                    let arguments = [kind, &set, &["--name", "x", "--", "--run-dir", "runs/a b"]].concat();
                    fs::write(&script, render(&arguments)).unwrap();
                    for checker in [&["bash", "-n"][..], &["shellcheck"]] {
                        let output =
                            Command::new(checker[0]).args(&checker[1..]).arg(&script).output().unwrap();
                        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stdout));
                    }
                }
            }
        }
    }
}

#[test]
fn mistakes_are_one_sentence_and_write_nothing() {
    let check = |arguments: &[&str], message: &str| {
        let output =
            Command::new(LAUNCHER).arg("slurm").args(arguments).env("PATH", "/nowhere").output().unwrap();
        let said = (output.status.code(), text(&output.stdout), text(&output.stderr));
        assert_eq!(said, (Some(2), String::new(), format!("ilm-launch: {message}\n")));
    };
    check(
        &["train", "--cluster", "generic", "--set", "node=4", "--", "--run-dir", "a"],
        "--set has no key 'node'; did you mean 'nodes'?",
    );
    check(
        &["train", "--cluster", "mine", "--", "--run-dir", "a"],
        "there is no cluster 'mine'; there are generic, one_machine",
    );
    check(
        &["train", "--cluster", "generic", "--", "--fresh", "--run-dir", "a"],
        "--fresh would start anew whenever the job is queued again; leave it out and name a new --run-dir",
    );
    check(&["evaluate", "--cluster", "generic", "--each", "it's"], "--each \"it's\" has an open quote");
    check(
        &["train", "--cluster", "generic", "--", "seed=1"],
        "several machines need --run-dir DIR among the worker's arguments, on a file system that they share",
    );
    check(
        &["train", "--cluster", "generic", "--set", "time=5", "--", "--run-dir", "a"],
        "cluster settings: time = \"5\" leaves less than a minute of work before signal_lead_secs = 300, so the job would be \
         queued again for ever; give it more time or a shorter lead",
    );
    check(
        &["train", "--cluster", "generic", "--submit", "--", "--run-dir", "a"],
        "sbatch is not in PATH; submit on a machine of the cluster, or write the script with --output",
    );
}

/// A throw-away cluster of two virtual nodes, in whose jobs the bench's worker is `ilm-worker`.
struct Cluster {
    bench: Bench,
}

impl Cluster {
    /// `None` where Slurm is not installed or may not be started.
    fn start(worker: &str, gpus: u32) -> Option<Self> {
        let bench = Bench::new(worker);
        if !Path::new("/usr/sbin/slurmctld").exists() || !Uid::effective().is_root() {
            eprintln!("skipped: a cluster needs root, and Slurm, which scripts/setup.sh --test installs");
            return None;
        }
        let programs = bench.path().join("bin");
        fs::create_dir(&programs).unwrap();
        fs::copy(bench.worker(), programs.join("ilm-worker")).unwrap();
        make_executable(&programs.join("ilm-worker"));
        // A copy: a link would lead to the real worker that may have been built beside the launcher.
        fs::copy(LAUNCHER, programs.join("ilm-launch")).unwrap();
        let cluster = Self { bench };
        let started = cluster.script("start").env("S1_GPUS", gpus.to_string()).output().unwrap();
        assert!(started.status.success(), "{}", text(&started.stderr));
        Some(cluster)
    }

    fn script(&self, what: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(root().join("tests/e2e/slurm-one-machine.sh")).arg(what).arg(self.bench.path().join("c"));
        command
    }

    /// Runs a command that talks to this cluster, and gives its output.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.bench.path()).env("ILM_LAUNCH_TEST", self.bench.path());
        let path = format!("{}:{}", self.bench.path().join("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("SLURM_CONF", self.bench.path().join("c/etc/slurm.conf"));
        for variable in ["OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include"] {
            command.env(variable, "lo");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Submits and gives the job's number.
    fn submit(&self, kind: &str, set: &[&str], options: &[&str], worker_args: &[&str]) -> String {
        let mut arguments = vec!["slurm", kind, "--cluster", "one_machine", "--submit"];
        set.iter().for_each(|set| arguments.extend(["--set", set]));
        let arguments = [&arguments, options, &["--"], worker_args].concat();
        self.run(LAUNCHER, &arguments).trim().to_owned()
    }

    /// Waits for the end of a job and gives `scontrol`'s word for how it ended.
    fn wait(&self, job: &str) -> String {
        let show = || self.run("scontrol", &["show", "job", job]);
        let ended = |shown: &str| {
            ["JobState=COMPLETED", "JobState=FAILED", "JobState=CANCELLED"]
                .iter()
                .any(|end| shown.contains(end))
        };
        wait_until("the job has ended", || ended(&show()));
        show()
    }

    fn log(&self, job: &str) -> String {
        self.bench.read(&format!("slurm-{job}.out"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.script("clean").status();
    }
}

const SAVE_ONCE: &str = "RANK=${RANK:-$SLURM_PROCID}
[ -e saved.$RANK ] && { echo resumed; exit 0; }
trap 'echo >> saved.$RANK; exit 75' USR1 TERM
echo >> ready
while :; do sleep 0.1; done";

/// Warned of its end, the job saves, is queued again, and ends well the second time.
fn a_warned_job_goes_on(set: &[&str]) {
    let Some(cluster) = Cluster::start(SAVE_ONCE, 0) else { return };
    let job = cluster.submit("train", set, &[], &["--run-dir", "run"]);
    wait_until("both ranks are ready", || cluster.bench.read("ready").lines().count() == 2);
    cluster.run("scancel", &["--batch", "--signal=USR1", &job]);
    let end = cluster.wait(&job);
    let log = cluster.log(&job);
    assert!(end.contains("JobState=COMPLETED") && end.contains("ExitCode=0:0"), "{end}\n{log}");
    assert!(end.contains("Restarts=1") && log.contains("is requeued and goes on from there"), "{end}\n{log}");
    let resumed = log.lines().filter(|line| line.ends_with("resumed")).count();
    assert_eq!(resumed, 2, "{log}");
}

#[test]
fn a_job_warned_of_its_end_is_queued_again_under_mpirun() {
    a_warned_job_goes_on(&[]);
}

#[test]
fn a_job_warned_of_its_end_is_queued_again_under_srun() {
    a_warned_job_goes_on(&["launcher=srun", "mpi=none"]);
}

#[test]
fn nothing_of_a_job_survives_a_killed_launcher_or_srun() {
    for victim in ["ilm-launch", "srun"] {
        let worker = "echo >> ready\nsleep 1000 &\nwait";
        let Some(cluster) = Cluster::start(worker, 0) else { return };
        let set = ["launcher=srun", "mpi=none", "max_restarts=0"];
        let job = cluster.submit("train", &set, &[], &["--run-dir", "run"]);
        wait_until("both ranks are ready", || cluster.bench.read("ready").lines().count() == 2);
        let of_name = |pid: &u32| launcher::process::name(*pid).as_deref() == Some(victim);
        let sleeping = |pid: &u32| launcher::process::name(*pid).as_deref() == Some("sleep");
        // The launcher of the job comes before the wrappers, which are called the same.
        let pid = cluster.bench.processes().into_iter().filter(of_name).min().unwrap();
        send("-KILL", pid);
        let end = cluster.wait(&job);
        assert!(end.contains("JobState=FAILED") && end.contains("ExitCode=137:0"), "{victim}: {end}");
        wait_until("no rank is left", || !cluster.bench.processes().iter().any(sleeping));
    }
}

#[test]
fn a_cancelled_job_stays_so() {
    let Some(cluster) = Cluster::start(SAVE_ONCE, 0) else { return };
    // The first tells the batch shell too, the second only the ranks, which save and stop all the same.
    for how in [&["--full"][..], &[]] {
        let _ = fs::remove_file(cluster.bench.path().join("ready"));
        let _ = fs::remove_file(cluster.bench.path().join("saved.0"));
        let _ = fs::remove_file(cluster.bench.path().join("saved.1"));
        let job = cluster.submit("train", &["launcher=srun", "mpi=none"], &[], &["--run-dir", "run"]);
        wait_until("both ranks are ready", || cluster.bench.read("ready").lines().count() == 2);
        cluster.run("scancel", &[how, &[job.as_str()]].concat());
        wait_until("the job is over", || cluster.run("squeue", &["--noheader"]).is_empty());
        let end = cluster.wait(&job);
        assert!(end.contains("JobState=CANCELLED") && end.contains("Restarts=0"), "{how:?}: {end}");
        assert!(!cluster.log(&job).contains("is requeued"), "{how:?}: {}", cluster.log(&job));
    }
}

#[test]
fn failures_that_may_pass_are_retried_and_others_keep_their_code() {
    // Rank 0 fails when both have seen that nothing has failed yet.
    let worker = "[ -e once ] && exit 4\necho $CUDA_VISIBLE_DEVICES >> gpus\n\
                  [ $SLURM_PROCID = 0 ] || exec sleep 1000\n\
                  until [ $(wc -l < gpus) = 2 ]; do sleep 0.1; done\necho > once\nexit 5";
    let Some(cluster) = Cluster::start(worker, 2) else { return };
    let set = [
        "launcher=srun",
        "mpi=none",
        "restart_delay_secs=0",
        "nodes=1",
        "ranks_per_node=2",
        "gpus_per_node=2",
    ];
    let job = cluster.submit("train", &set, &[], &["--run-dir", "run"]);
    let end = cluster.wait(&job);
    let log = cluster.log(&job);
    assert!(end.contains("JobState=FAILED") && end.contains("ExitCode=4:0"), "{end}\n{log}");
    assert_eq!(
        log.matches("starting again in 0 s because rank 0 failed first: exit code 5").count(),
        1,
        "{log}"
    );
    assert_eq!(cluster.bench.read("gpus"), "0,1\n0,1\n");
}

#[test]
fn a_cluster_that_differs_from_the_script_starts_nothing() {
    let Some(cluster) = Cluster::start("echo > ran", 0) else { return };
    fs::write(
        cluster.bench.path().join("job.sh"),
        render(&["train", "--cluster", "one_machine", "--", "--run-dir", "run"]),
    )
    .unwrap();
    let job = cluster.run("sbatch", &["--parsable", "--nodes=1", "--ntasks=1", "job.sh"]);
    let end = cluster.wait(job.trim());
    assert!(end.contains("ExitCode=2:0"), "{end}");
    let said = "batch script: the allocation has 1 nodes, but this script was written for 2;";
    assert!(cluster.log(job.trim()).contains(said), "{}", cluster.log(job.trim()));

    let job = cluster.submit("train", &["launcher=srun", "mpi=pmi9"], &[], &["--run-dir", "run"]);
    let end = cluster.wait(&job);
    assert!(end.contains("ExitCode=2:0"), "{end}");
    let said = "batch script: srun has no MPI plug-in 'pmi9' here;";
    assert!(cluster.log(&job).contains(said), "{}", cluster.log(&job));
    assert_eq!(cluster.bench.read("ran"), "");
}

#[test]
fn evaluations_follow_a_training_run_however_it_ended() {
    let worker = "[ $1 = evaluate ] && { echo \"$* after $(cat trained)\" >> evaluated; exit 0; }\n\
                  echo training >> trained\nexit 4";
    let Some(cluster) = Cluster::start(worker, 0) else { return };
    let set = ["launcher=srun", "mpi=none", "nodes=1", "ranks_per_node=1"];
    let training = cluster.submit("train", &set, &[], &["--run-dir", "run"]);
    let each = ["--after", &training, "--each", "--split test", "--each", "'a b'"];
    let evaluations = cluster.submit("evaluate", &set, &each, &["--run-dir", "run"]);
    assert!(cluster.wait(&training).contains("ExitCode=4:0"));
    wait_until("both are evaluated", || cluster.bench.read("evaluated").lines().count() == 2);
    let evaluated = cluster.bench.read("evaluated");
    let mut lines: Vec<&str> = evaluated.lines().collect();
    lines.sort_unstable();
    let expected = ["evaluate --run-dir run --split test", "evaluate --run-dir run a b"];
    assert_eq!(lines, expected.map(|line| format!("{line} after training")), "job {evaluations}");
}
