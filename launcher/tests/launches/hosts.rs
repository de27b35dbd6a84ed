//! Ranks on several machines: pretended ones, reached by an agent in the place of ssh, and ones with networks of their own.

use crate::support::{Bench, LAUNCHER, make_executable, send, text, wait_until};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const RUN: &[&str] = &["train", "--run-dir", "run"];

/// Runs commands here; they find their pretended host in `$PRETENDED`. Host `down` cannot be reached, and what is started on
/// host `mute` is never heard of. Each has a folder for temporary files, because Open MPI's daemons fail if two of them make
/// the same one at the same moment.
const AGENT: &str = r#"#!/bin/bash
export PRETENDED=$1
shift
export TMPDIR=$TMPDIR/$PRETENDED
mkdir -p $TMPDIR
if [ $PRETENDED = mute ]; then exit 0; fi
if [ $PRETENDED = down ]; then echo "ssh: connect to host down port 22: No route to host" >&2; exit 255; fi
exec /bin/sh -c "$*"
"#;

fn bench(worker: &str) -> (Bench, String) {
    let bench = Bench::new(worker);
    let agent = bench.path().join("agent");
    fs::write(&agent, AGENT).unwrap();
    make_executable(&agent);
    (bench, agent.display().to_string())
}

#[test]
fn every_host_gets_its_ranks_and_all_report_here() {
    // The failure ends the others, so it waits until they have been heard.
    let (bench, agent) = bench(
        "echo $PRETENDED $RANK $OMPI_COMM_WORLD_LOCAL_RANK
         [ $RANK = 2 ] || exit 0
         until [ -s run/logs/rank-0.log ] && [ -s run/logs/rank-1.log ]; do sleep 0.1; done
         exit 4",
    );
    let output = bench.run(3, &["--hosts", "node-a:2,node-b:1", "--agent", &agent, "--interface", "lo"], RUN);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{report}");
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["[rank 1] node-a 1 1", "[rank 2] node-b 2 0", "node-a 0 0"]);
    assert_eq!(bench.read("run/logs/rank-2.log"), "node-b 2 0\n");
    assert!(report.contains("rank 2 failed first: exit code 4 (checkpoint)"), "{report}");
}

#[test]
fn a_host_that_cannot_be_used_is_named_with_the_reason() {
    let (bench, agent) = bench("echo ran");
    let options = [
        "--hosts",
        "node-a:1,down:1",
        "--agent",
        &agent,
        "--interface",
        "lo",
        "--max-restarts",
        "1",
        "--restart-delay",
        "0",
    ];
    let output = bench.run(2, &options, RUN);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    let report = text(&output.stderr);
    let reason =
        "ilm-launch: host down cannot be used: ssh: connect to host down port 22: No route to host\n";
    assert_eq!(report.matches(reason).count(), 2, "{report}");
    assert!(report.contains("starting again in 0 s because a host cannot be used"), "{report}");
}

#[test]
fn a_host_that_starts_nothing_is_not_waited_for_for_ever() {
    let (bench, agent) = bench("echo ran");
    let restart = ["--max-restarts", "1", "--restart-delay", "0", "--start-timeout", "1"];
    let hosts = ["--hosts", "node-a:1,mute:1", "--agent", &agent, "--interface", "lo"];
    let output = bench.run(2, &[restart, hosts].concat(), RUN);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), String::new()));
    let report = text(&output.stderr);
    let reason = "ilm-launch: only 0 of 2 ranks were started within 1 s; the run was ended\n";
    assert_eq!(report.matches(reason).count(), 2, "{report}");
    assert_eq!(report.matches("starting again in 0 s").count(), 1, "{report}");
}

#[test]
fn a_rank_killed_elsewhere_ends_the_others() {
    let (bench, agent) = bench("[ $RANK = 1 ] && kill -9 $$\nexec sleep 1000");
    let output = bench.run(2, &["--hosts", "node-a:1,node-b:1", "--agent", &agent, "--interface", "lo"], RUN);
    assert_eq!(output.status.code(), Some(137));
    assert!(text(&output.stderr).contains("rank 1 failed first: killed by signal 9 (SIGKILL)"));
}

#[test]
fn ranks_elsewhere_save_when_asked() {
    let (bench, agent) =
        bench("trap 'echo >> saved; exit 75' USR1\necho >> ready\nwhile :; do sleep 0.1; done");
    let options = ["--hosts", "node-a:1,node-b:1", "--agent", &agent, "--interface", "lo"];
    let launcher = bench.start_with(2, &options, RUN);
    send("-TERM", launcher.id());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert_eq!(bench.read("saved").lines().count(), 2);
}

#[test]
fn nothing_elsewhere_survives_a_killed_launcher() {
    let (bench, agent) = bench("sleep 1000 &\necho >> ready\nsleep 1000");
    let mut launcher =
        bench.start_with(2, &["--hosts", "node-a:1,node-b:1", "--agent", &agent, "--interface", "lo"], RUN);
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_until("all processes are gone", || bench.processes().is_empty());
}

/// Two hosts with networks of their own, removed at the end.
struct TwoHosts {
    folder: PathBuf,
}

impl TwoHosts {
    /// `None` where the system allows no namespaces.
    fn up(bench: &Bench) -> Option<Self> {
        let hosts = Self { folder: bench.path().join("hosts") };
        let output = hosts.command(&["up"], &[]).output().unwrap();
        if output.status.success() {
            return Some(hosts);
        }
        eprintln!("skipped: no hosts with networks of their own here: {}", text(&output.stderr).trim());
        None
    }

    fn command(&self, before: &[&str], after: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/e2e/two-hosts.sh"));
        command.args(before).arg(&self.folder).args(after);
        command
    }

    fn do_to_h1(&self, what: &str) {
        assert!(self.command(&[what], &["h1"]).status().unwrap().success());
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        let _ = self.command(&["down"], &[]).status();
    }
}

#[test]
fn a_host_that_vanishes_is_noticed_and_its_ranks_end_too() {
    let bench = Bench::new("echo >> ready\nexec sleep 1000");
    let Some(hosts) = TwoHosts::up(&bench) else { return };
    let agent = hosts.folder.join("agent");
    let mut command =
        hosts.command(&["run"], &["h0", LAUNCHER, "run", "--hosts", "h0:1,h1:1", "--interface", "eth0"]);
    command.arg("--agent").arg(agent).arg("--worker").arg(bench.worker()).arg("--").args(RUN);
    command.current_dir(bench.path()).env("ILM_LAUNCH_TEST", bench.path());
    let launcher = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the ranks are ready", || bench.read("ready").lines().count() == 2);
    hosts.do_to_h1("blackhole");
    // mpirun's own patience would be eight minutes, longer than this test has.
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(205), "{}", text(&output.stderr));
    let worker = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default() == "sleep\n";
    wait_until("the rank on the lost host is gone", || !bench.processes().into_iter().any(worker));
}
