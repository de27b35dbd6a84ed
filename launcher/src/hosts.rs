//! The machines of a run: the list `a:8,b:8`, and whether each of them can be used.

use crate::args::MOST_RANKS;
use crate::error::Error;
use crate::plan::RunPlan;
use crate::status::this_host;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::borrow::Cow;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine and the ranks that go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name or address.
    pub name: String,
    /// Ranks, at least 1.
    pub ranks: usize,
}

/// Reads `a:8,b:8`; a name alone is one rank.
///
/// # Errors
/// An empty or doubled name, or a number of ranks that is none.
pub fn parse(list: &str) -> crate::error::Result<Vec<Host>> {
    let mut hosts: Vec<Host> = Vec::new();
    for part in list.split(',') {
        let bad = |reason| Error::BadHosts { part: part.to_owned(), reason };
        let (name, ranks) = match part.split_once(':') {
            None => (part, Ok(1)),
            Some((name, ranks)) => (name, ranks.parse()),
        };
        // It stands in command lines of ssh and mpirun.
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        match ranks {
            _ if !is_name => return Err(bad("is no host name")),
            Ok(ranks) if ranks as u64 > MOST_RANKS => {
                return Err(bad("has more ranks than a machine can have"));
            }
            Err(_) | Ok(0) => return Err(bad("has no number of ranks behind the colon")),
            Ok(_) if hosts.iter().any(|host| host.name == name) => return Err(bad("is named twice")),
            Ok(ranks) => hosts.push(Host { name: name.to_owned(), ranks }),
        }
    }
    Ok(hosts)
}

/// The list as mpirun reads it.
pub fn list(hosts: &[Host]) -> String {
    hosts.iter().map(|host| format!("{}:{}", host.name, host.ranks)).collect::<Vec<_>>().join(",")
}

/// Asks every host, all at once, for what a run needs there, and says what is wrong, a sentence for each that is not well.
///
/// `logs` has to exist here, and so on every host. mpirun needs no agent for this one.
pub fn check(hosts: &[Host], agent: &Path, plan: &RunPlan, logs: &Path) -> Vec<String> {
    let script = script(&plan.wrapper, &plan.worker, logs);
    let here = this_host();
    let hosts: Vec<&Host> =
        hosts.iter().filter(|host| host.name != here && host.name != "localhost").collect();
    let answers = thread::scope(|scope| {
        let ask = |host: &Host| ask(agent, &host.name, &script);
        let asked: Vec<_> = hosts.iter().map(|&host| scope.spawn(move || ask(host))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap_or(Ok(()))).collect::<Vec<_>>()
    });
    let unwell = hosts.iter().zip(answers).filter_map(|(host, answer)| Some((host, answer.err()?)));
    unwell.map(|(host, why)| format!("host {} cannot be used: {why}", host.name)).collect()
}

/// The options that keep ssh from asking people and from waiting for ever; other agents get none.
pub fn agent_options(agent: &Path) -> &'static [&'static str] {
    if agent.file_name().is_some_and(|name| name == "ssh") {
        &[
            "-x",
            "-oBatchMode=yes",
            "-oConnectTimeout=10",
            "-oServerAliveInterval=5",
            "-oServerAliveCountMax=3",
        ]
    } else {
        &[]
    }
}

/// A shell script that prints a reason and fails, or does neither.
fn script(wrapper: &Path, worker: &Path, logs: &Path) -> String {
    let quoted = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        shlex::try_quote(&absolute.to_string_lossy()).map_or_else(|_| String::new(), Cow::into_owned)
    };
    let mut script = String::from("no() { echo \"$*\"; exit 9; }; ");
    script += "command -v orted >/dev/null || no 'orted, a part of Open MPI 4, is not in PATH there'; ";
    for program in [wrapper, worker] {
        let program = quoted(program);
        script += &format!("test -x {program} || no there is no program {program}; ");
    }
    let logs = quoted(logs);
    script
        + &format!(
            "test -d {logs} || no there is no folder {logs}: the run directory has to be shared by all hosts"
        )
}

fn ask(agent: &Path, host: &str, script: &str) -> Result<(), String> {
    let remote = shlex::try_quote(script).map_err(|error| error.to_string())?;
    let mut command = Command::new(agent);
    command.args(agent_options(agent)).arg(host).arg(format!("/bin/sh -c {remote}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| format!("{} cannot be started: {error}", agent.display()))?;
    let group = child.id();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(output) = receive.recv_timeout(PATIENCE) else {
        if let Ok(group) = i32::try_from(group) {
            // The thread still waits for it, so the number is its own.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        return Err(format!("no answer within {} s", PATIENCE.as_secs()));
    };
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let line = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().next_back().map(str::to_owned);
    let said = line(&output.stdout).or_else(|| line(&output.stderr));
    Err(said.unwrap_or_else(|| format!("{} ended with {}", agent.display(), output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_mistakes_named() {
        let hosts = parse("a:8,node-2.some.org:1,10.0.0.3").unwrap();
        assert_eq!(hosts.iter().map(|host| host.ranks).collect::<Vec<_>>(), [8, 1, 1]);
        assert_eq!(list(&hosts), "a:8,node-2.some.org:1,10.0.0.3:1");
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            message("a:8,b:0"),
            "--hosts: 'b:0' has no number of ranks behind the colon; write it as a:8,b:8"
        );
        assert!(message("a:8,").contains("'' is no host name"));
        assert!(message("-oProxyCommand=x").contains("is no host name"));
        assert!(message("a:1,a:1").contains("'a:1' is named twice"));
        assert!(message("a:8:8").contains("no number of ranks"));
    }

    #[test]
    fn what_is_missing_on_a_host_is_said() {
        let here = tempfile::tempdir().unwrap();
        let run = |logs: &Path, program: &Path| {
            let output = Command::new("sh").arg("-c").arg(script(program, program, logs)).output().unwrap();
            (output.status.success(), String::from_utf8(output.stdout).unwrap())
        };
        let shell = Path::new("/bin/sh");
        assert_eq!(run(here.path(), shell), (true, String::new()));
        assert_eq!(run(here.path(), Path::new("/no/prog")), (false, "there is no program /no/prog\n".into()));
        assert!(run(&here.path().join("a b"), shell).1.contains("a b: the run directory has to be shared"));
    }
}
