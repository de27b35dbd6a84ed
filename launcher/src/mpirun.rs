//! The command line of mpirun (Open MPI 4) or srun.

use crate::hosts::{self, Host};
use crate::plan::{Place, RunPlan};
use crate::remote::{KEEPALIVE, TOKEN_VARIABLE};
use crate::session::Session;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// How variables begin that ranks on other machines get as well: keys of object stores, settings of the programs and of NCCL.
const PASSED_ON: [&str; 4] = ["AWS_", "GOOGLE_", "ILM_", "NCCL_"];
/// Others that they get, by their whole names: what the programs say, and the Hugging Face hub's token.
const PASSED_ON_BY_NAME: [&str; 3] = ["RUST_LOG", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

/// Set for the worker: SIGUSR1 comes from the launcher, as it does whatever the launcher was told by, and has to stop the worker
/// even where the run's settings do not name it.
pub const STOPS_BY_USR1: &str = "ILM_STOP_BY_USR1";

/// The command that starts the wrapper of every rank; the wrappers report to `session`.
pub fn command(plan: &RunPlan, session: &Session) -> Command {
    let mut command = Command::new(&plan.mpirun);
    match &plan.place {
        Place::Elsewhere { srun: Some(mpi), .. } => by_srun(&mut command, plan, mpi),
        _ => by_mpirun(&mut command, plan, session),
    }
    if let Some(token) = session.token() {
        // In the environment, which others cannot read, and in no command line.
        command.env(TOKEN_VARIABLE, token);
    }
    command.arg(&plan.wrapper).arg("rank");
    command.arg("--events").arg(session.address());
    command.arg("--logs").arg(plan.logs(session));
    if plan.bind_cores && !is_by_srun(plan) {
        command.arg("--bind-cores");
    }
    if let (Some(run_dir), 1..) = (&plan.run_dir, plan.hang_timeout) {
        command.arg("--run-dir").arg(run_dir);
        command.arg("--hang-timeout").arg(plan.hang_timeout.to_string());
    }
    command.arg(&plan.worker).arg("--").args(&plan.worker_args);
    command
}

fn is_by_srun(plan: &RunPlan) -> bool {
    matches!(plan.place, Place::Elsewhere { srun: Some(_), .. })
}

fn by_srun(command: &mut Command, plan: &RunPlan, mpi: &str) {
    // Jobs may have been submitted without their environment, which steps would then lack too, token and settings included.
    command.arg("--export=ALL");
    // Without -K the ranks of other nodes wait for ever for one that died.
    command.args(["-K", "--mpi", mpi, "--ntasks", &plan.ranks.to_string()]);
    if plan.bind_cores {
        command.arg("--cpu-bind=cores");
    }
    // Slurm gives a step one CPU for each task unless it is told what the job has.
    if let Ok(cpus) = std::env::var("SLURM_CPUS_PER_TASK") {
        command.args(["--cpus-per-task", &cpus]);
    }
}

fn by_mpirun(command: &mut Command, plan: &RunPlan, session: &Session) {
    // Root is usual in containers, and refusing it protects nobody there.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.arg("-n").arg(plan.ranks.to_string());
    // mpirun's own default is one core a rank for 1 and 2 ranks, even outside this process's affinity mask.
    command.args(["--bind-to", "none"]);
    match &plan.place {
        Place::Here { oversubscribed } => stay_here(command, *oversubscribed, session),
        Place::Elsewhere { hosts, agent, interface, .. } => {
            reach_hosts(command, hosts, agent, interface.as_deref());
        }
    }
    for parameter in plan.mca.chunks(2) {
        command.arg("--mca").args(parameter);
    }
}

fn stay_here(command: &mut Command, oversubscribed: bool, session: &Session) {
    // One machine needs no network; what the user has set stays.
    for variable in ["OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include"] {
        if std::env::var_os(variable).is_none() {
            command.env(variable, "lo");
        }
    }
    if oversubscribed {
        command.arg("--oversubscribe");
    }
    // Its files go with the session, even if mpirun has no time to remove them.
    command.args(["--mca", "orte_tmpdir_base"]).arg(session.folder());
}

fn reach_hosts(command: &mut Command, hosts: &[Host], agent: &Path, interface: Option<&str>) {
    let mut set = |name: &str, value: &str| {
        command.args(["--mca", name, value]);
    };
    // A host that is gone would otherwise go unnoticed for eight minutes.
    for (name, value) in ["time", "intvl", "probes"].into_iter().zip(KEEPALIVE) {
        set(&format!("oob_tcp_keepalive_{name}"), &value.to_string());
    }
    if let Some(interface) = interface {
        set("oob_tcp_if_include", interface);
        set("btl_tcp_if_include", interface);
    }
    // Named only: the values, which may be secrets, are in the environment.
    for name in passed_on(std::env::vars_os().map(|(name, _)| name)) {
        command.args(["-x", &name]);
    }
    if !hosts.is_empty() {
        let options = hosts::agent_options(agent).join(" ");
        let agent = format!("{} {options}", agent.display());
        // Hosts need not be able to reach each other by the agent.
        command.args(["--mca", "plm_rsh_agent", agent.trim_end(), "--mca", "plm_rsh_no_tree_spawn", "1"]);
        command.arg("--host").arg(hosts::list(hosts));
    }
}

/// The variables of ranks on other machines, each once: of those that are `set`, and the session's word.
fn passed_on(set: impl Iterator<Item = OsString>) -> BTreeSet<String> {
    let is_theirs = |name: &String| {
        PASSED_ON_BY_NAME.contains(&name.as_str()) || PASSED_ON.iter().any(|prefix| name.starts_with(prefix))
    };
    let set = set.filter_map(|name| name.into_string().ok()).filter(is_theirs);
    set.chain([TOKEN_VARIABLE.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restart::RestartPolicy;
    use std::time::Duration;

    fn words(place: Place) -> Vec<String> {
        let plan = RunPlan {
            ranks: 8,
            place,
            bind_cores: false,
            mca: ["btl", "^openib"].map(str::to_owned).into(),
            mpirun: "/usr/bin/mpirun".into(),
            wrapper: "/bin/ilm-launch".into(),
            worker: "/bin/ilm-worker".into(),
            worker_args: ["train", "--run-dir", "runs/a", "seed=3"].map(Into::into).into(),
            run_dir: Some("runs/a".into()),
            start_timeout: 300,
            hang_timeout: 600,
            restarts: RestartPolicy { most: 0, delay: Duration::ZERO },
        };
        let (session, _events) = plan.session().unwrap();
        let command = command(&plan, &session);
        command.get_args().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_command_ends_with_the_wrapped_worker_unchanged() {
        let words = words(Place::Here { oversubscribed: true });
        assert_eq!(words[..5], ["-n", "8", "--bind-to", "none", "--oversubscribe"]);
        let wrapper = words.iter().position(|word| *word == "/bin/ilm-launch").unwrap();
        assert_eq!(words[wrapper - 3..wrapper], ["--mca", "btl", "^openib"]);
        let worker = words.iter().position(|word| *word == "/bin/ilm-worker").unwrap();
        assert_eq!(words[worker + 1..], ["--", "train", "--run-dir", "runs/a", "seed=3"]);
        assert!(words.contains(&"runs/a/logs".to_owned()));
    }

    #[test]
    fn keys_and_settings_are_passed_on_by_name_and_once() {
        let set = [
            "HOME",
            "ILM_NCCL_LIBRARY",
            "AWS_ACCESS_KEY_ID",
            "RUST_LOG",
            "RUST_LOGGER",
            "NCCL_DEBUG",
            "MY_AWS_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "HF_HOME",
            "HF_TOKEN",
            TOKEN_VARIABLE,
        ];
        let expected = [
            "AWS_ACCESS_KEY_ID",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "HF_TOKEN",
            TOKEN_VARIABLE,
            "ILM_NCCL_LIBRARY",
            "NCCL_DEBUG",
            "RUST_LOG",
        ];
        assert_eq!(Vec::from_iter(passed_on(set.into_iter().map(OsString::from))), expected);
        assert_eq!(Vec::from_iter(passed_on(std::iter::empty())), [TOKEN_VARIABLE]);
    }

    #[test]
    fn other_hosts_get_an_agent_a_keepalive_and_a_network() {
        let hosts = hosts::parse("a:6,b:2").unwrap();
        let place = |agent: &str, hosts| Place::Elsewhere {
            hosts,
            agent: agent.into(),
            interface: Some("eth0".into()),
            srun: None,
        };
        let by_ssh = words(place("ssh", hosts)).join(" ");
        for part in [
            "--mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 3 ",
            "--mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0 ",
            "-x ILM_LAUNCH_TOKEN ",
            "--mca plm_rsh_agent ssh -x -oBatchMode=yes ",
            "--host a:6,b:2 ",
            "--events tcp:",
        ] {
            assert!(by_ssh.contains(part), "{part} is not in {by_ssh}");
        }
        let by_slurm = words(place("ssh", Vec::new())).join(" ");
        assert!(!by_slurm.contains("--host") && !by_slurm.contains("plm_rsh"), "{by_slurm}");
        assert!(by_slurm.contains("oob_tcp_keepalive_time"));
        let srun = Some("pmix".to_owned());
        let by_srun =
            words(Place::Elsewhere { hosts: Vec::new(), agent: "ssh".into(), interface: None, srun });
        assert_eq!(by_srun[..6], ["--export=ALL", "-K", "--mpi", "pmix", "--ntasks", "8"]);
    }
}
