//! Training across two hosts with networks of their own: the link is cut, which ends the attempt; once it is back, the run goes
//! on and ends with the bits of one on a single machine.

use std::path::Path;
use std::process::Command;

use crate::program::{
    Finished, Signal, checkpoint_bits, checkpoint_steps, figures, kill, last_step, mpirun, processes_with,
    program, run, start, tiny_star, wait, wait_until,
};

const STEPS: u64 = 40;

/// Two hosts, removed when dropped.
struct Hosts<'a> {
    folder: &'a Path,
}

impl Hosts<'_> {
    fn command(&self, before: &[&str], after: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/two-hosts.sh"));
        command.args(before).arg(self.folder).args(after);
        command
    }

    fn do_to_h1(&self, what: &str) {
        run(&mut self.command(&[what], &["h1"])).expect(0);
    }
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        run(&mut self.command(&["down"], &[]));
    }
}

fn training(run_dir: &Path) -> Vec<String> {
    let mut arguments = tiny_star(run_dir);
    arguments.extend([format!("trainer.max_steps={STEPS}"), "checkpoint.every_n_steps=3".into()]);
    arguments
}

/// How the newest attempt ended, if one has.
fn end_of_attempt(run_dir: &Path) -> Option<u64> {
    let record = std::fs::read_to_string(run_dir.join("launcher.json")).ok()?;
    serde_json::from_str::<serde_json::Value>(&record).ok()?["end"]["exit_code"].as_u64()
}

#[test]
fn a_run_whose_link_was_cut_goes_on_when_it_is_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hosts = Hosts { folder: &folder.path().join("hosts") };
    let Finished { code, stderr, .. } = run(&mut hosts.command(&["up"], &[]));
    if code != 0 {
        eprintln!("skipped: no hosts with networks of their own here: {}", stderr.trim());
        return;
    }
    let [run_dir, reference] = ["run", "reference"].map(|name| folder.path().join(name));
    let launcher = program("ilm-launch").display().to_string();
    let mut command =
        hosts.command(&["run"], &["h0", &launcher, "run", "--hosts", "h0:1,h1:1", "--interface", "eth0"]);
    command.arg("--agent").arg(hosts.folder.join("agent"));
    // While the link is cut, every start is in vain.
    command.args(["--max-restarts", "100", "--restart-delay", "1", "--start-timeout", "5", "--"]);
    let child = start(command.args(training(&run_dir)));
    // The start after the cut goes on from it.
    wait_until("a checkpoint", || last_step(&run_dir) >= 5 && !checkpoint_steps(&run_dir).is_empty());

    // Stopped, so that the run cannot be over before the link is cut.
    let ranks = processes_with(&run_dir.display().to_string(), "ilm-worker");
    assert_eq!(ranks.len(), 2);
    ranks.iter().for_each(|id| kill(Signal::SIGSTOP, *id));
    hosts.do_to_h1("blackhole");
    ranks.iter().for_each(|id| kill(Signal::SIGCONT, *id));
    wait_until("the end of the attempt", || end_of_attempt(&run_dir).is_some());
    assert_eq!(end_of_attempt(&run_dir), Some(205), "mpirun lost a host");
    wait_until("both ranks to end", || ranks.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists()));
    hosts.do_to_h1("heal");

    let finished = wait(child).expect(0);
    assert!(finished.stdout.contains("resuming from"), "{}", finished.stdout);
    // The hosts are one machine, whose processes could read each other's memory.
    let exchange = |line: &str| line.starts_with("exchange ") && line.ends_with(" messages of MPI");
    assert!(finished.stdout.lines().any(exchange), "{}", finished.stdout);
    run(mpirun(2).args(training(&reference))).expect(0);
    assert!(
        checkpoint_bits(&reference, STEPS) == checkpoint_bits(&run_dir, STEPS),
        "the final states differ"
    );
    assert_eq!(figures(&reference, "loss"), figures(&run_dir, "loss"));
}

#[test]
fn pieces_go_over_tcp_at_once_unless_the_user_says_otherwise() {
    const LIMIT: &str = "OMPI_MCA_btl_tcp_eager_limit";
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (set, found) in [(None, "1048576"), (Some("131072"), "131072")] {
        let mut command = mpirun(2);
        command.args(tiny_star(folder.path())).arg("--dry-run");
        // Open MPI lists what the environment of a rank sets.
        command.env("OMPI_MCA_mpi_show_mca_params", "enviro").envs(set.map(|bytes| (LIMIT, bytes)));
        let Finished { stdout, stderr, .. } = run(&mut command).expect(0);
        let told = format!("{stdout}{stderr}");
        assert!(told.contains(&format!("btl_tcp_eager_limit={found} (environment)")), "{told}");
    }
}
