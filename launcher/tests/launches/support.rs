//! A launch in a folder of its own, whose processes are all known by an environment variable they inherit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

/// Nothing here should take longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

pub const LAUNCHER: &str = env!("CARGO_BIN_EXE_ilm-launch");

/// What workers of several tests do.
///
/// `beat RUN STEP`: writes the heartbeat. `save RUN STEP`: leaves what looks like a checkpoint.
const FUNCTIONS: &str = r#"beat() {
    mkdir -p $1/heartbeats
    printf '{"rank":%d,"pid":%d,"host":"%s","phase":"train","step":%d,"last_collective":{"name":"gradients",
        "sequence":%d,"bytes":64},"updated_unix_ms":%s}' $RANK $$ $(uname -n) $2 $((10 * $2)) $(date +%s%3N) >$1/heartbeats/.$RANK
    mv $1/heartbeats/.$RANK $1/heartbeats/rank-$RANK.json
}
save() {
    mkdir -p $1/checkpoints/step-$2
    echo '{}' >$1/checkpoints/step-$2/manifest.json
}"#;

pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// A folder with the shell script `worker`, in which `$RANK` is the rank.
    pub fn new(worker: &str) -> Self {
        let bench = Self { folder: TempDir::new().unwrap() };
        let script = format!("#!/bin/bash\nRANK=$OMPI_COMM_WORLD_RANK\n{FUNCTIONS}\n{worker}\n");
        fs::write(bench.worker(), script).unwrap();
        make_executable(&bench.worker());
        bench
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn worker(&self) -> PathBuf {
        self.path().join("worker.sh")
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    /// `ilm-launch run -n RANKS OPTIONS.. --worker SCRIPT -- WORKER_ARGS..` in the folder.
    pub fn command(&self, ranks: usize, options: &[&str], worker_args: &[&str]) -> Command {
        let mut command = Command::new(LAUNCHER);
        command.args(["run", "-n", &ranks.to_string()]).args(options);
        command.arg("--worker").arg(self.worker()).arg("--").args(worker_args);
        command.current_dir(self.path()).env("ILM_LAUNCH_TEST", self.path());
        command.env("TMPDIR", self.path()).stdin(Stdio::null());
        command
    }

    /// Runs to the end, and checks that no process is left.
    pub fn run(&self, ranks: usize, options: &[&str], worker_args: &[&str]) -> Output {
        let output = self.command(ranks, options, worker_args).output().unwrap();
        assert_eq!(self.processes(), Vec::<u32>::new(), "processes are left");
        output
    }

    /// Compiles an MPI program whose ranks meet at barriers until they are killed.
    pub fn compile_meeting(&self, name: &str) {
        let source = r#"#include <mpi.h>
            #include <stdio.h>
            #include <unistd.h>
            int main(int argc, char **argv) {
                MPI_Init(&argc, &argv);
                MPI_Barrier(MPI_COMM_WORLD);
                FILE *ready = fopen("ready", "a");
                fputs("\n", ready);
                fclose(ready);
                for (;;) {
                    MPI_Barrier(MPI_COMM_WORLD);
                    usleep(1000);
                }
            }"#;
        let file = self.path().join(format!("{name}.c"));
        fs::write(&file, source).unwrap();
        let mut compiler = Command::new("mpicc");
        assert!(compiler.arg(&file).arg("-o").arg(self.path().join(name)).status().unwrap().success());
    }

    /// Starts a run whose ranks each write a line to the file `ready` when they are, and waits for that.
    pub fn start(&self, ranks: usize) -> Child {
        self.start_with(ranks, &[], &[])
    }

    /// The same with options of the launcher and arguments of the worker.
    pub fn start_with(&self, ranks: usize, options: &[&str], worker_args: &[&str]) -> Child {
        let mut command = self.command(ranks, options, worker_args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while self.read("ready").lines().count() != ranks {
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                let said = text(&child.wait_with_output().unwrap().stderr);
                panic!("not {ranks} ranks are ready but '{}'; the launcher said: {said}", self.read("ready"));
            }
            sleep(Duration::from_millis(10));
        }
        child
    }

    /// Live processes of this launch, the launcher included; zombies have no environment any more.
    pub fn processes(&self) -> Vec<u32> {
        let mark = format!("ILM_LAUNCH_TEST={}", self.path().display());
        let has_mark = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(has_mark).collect()
    }

    /// The process number of mpirun.
    pub fn mpirun(&self) -> u32 {
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let is_mpirun = |pid: &u32| matches!(name(*pid).trim(), "mpirun" | "orterun");
        self.processes().into_iter().find(is_mpirun).expect("mpirun runs")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A failed test must not leave processes either.
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

/// The name of this host, as heartbeats have it.
pub fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// A heartbeat of rank 0, written at this moment by the process `pid` on this host.
pub fn fresh_beat(pid: u32) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let host = host();
    format!(r#"{{"rank":0,"pid":{pid},"host":"{host}","phase":"train","step":7,"updated_unix_ms":{now}}}"#)
}

pub fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap().success());
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_millis(10));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
