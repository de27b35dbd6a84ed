//! Every decision of a run, made and checked before any process is started.

use crate::args::{CpuBind, RunArgs};
use crate::error::{Error, Result};
use crate::machine;
use crate::restart::RestartPolicy;
use crate::session::Session;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What will be started.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// Number of ranks, at least 1.
    pub ranks: usize,
    /// Whether ranks share cores.
    pub oversubscribed: bool,
    /// Cores of its own for each rank; 0: none is bound.
    pub cores_per_rank: usize,
    /// The `mpirun` executable.
    pub mpirun: PathBuf,
    /// This executable, the wrapper around each rank.
    pub wrapper: PathBuf,
    /// The worker executable.
    pub worker: PathBuf,
    /// Its arguments.
    pub worker_args: Vec<OsString>,
    /// Run directory named by the worker's arguments.
    pub run_dir: Option<PathBuf>,
    /// Seconds for which a heartbeat may stand still; 0: for ever.
    pub hang_timeout: u64,
    /// When to start again.
    pub restarts: RestartPolicy,
}

impl RunPlan {
    /// Finds the executables and divides the cores.
    ///
    /// # Errors
    /// No ranks, too few cores to bind, no mpirun, no worker.
    pub fn new(args: RunArgs) -> Result<Self> {
        let (oversubscribed, cores_per_rank) =
            divide(args.ranks, machine::usable_cores().len(), args.cpu_bind)?;
        let wrapper = std::env::current_exe().map_err(Error::io("find", Path::new("/proc/self/exe")))?;
        Ok(Self {
            ranks: args.ranks,
            oversubscribed,
            cores_per_rank,
            mpirun: machine::find_in_path("mpirun").ok_or(Error::NoMpirun)?,
            worker: find_worker(args.worker, &wrapper)?,
            wrapper,
            run_dir: run_dir(&args.worker_args),
            hang_timeout: args.hang_timeout,
            restarts: RestartPolicy { most: args.max_restarts, delay: args.restart_delay },
            worker_args: args.worker_args,
        })
    }

    /// Where `rank-K.log` goes.
    pub fn logs(&self, session: &Session) -> PathBuf {
        self.run_dir.as_deref().unwrap_or(session.folder()).join("logs")
    }

    /// The mpirun command; the wrapper reports to `session`.
    pub fn command(&self, session: &Session) -> Command {
        let mut command = Command::new(&self.mpirun);
        // Root is usual in containers, and refusing it protects nobody there.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        // One machine needs no network; what the user has set stays.
        for variable in ["OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include"] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, "lo");
            }
        }
        command.arg("-n").arg(self.ranks.to_string());
        if self.oversubscribed {
            command.arg("--oversubscribe");
        }
        // mpirun's own default is one core a rank for 1 and 2 ranks, even outside this process's affinity mask.
        command.args(["--bind-to", "none"]);
        // Its files go with the session, even if mpirun has no time to remove them.
        command.args(["--mca", "orte_tmpdir_base"]).arg(session.folder());
        command.arg(&self.wrapper).arg("rank");
        command.arg("--events").arg(session.pipe());
        command.arg("--logs").arg(self.logs(session));
        command.arg("--cores").arg(self.cores_per_rank.to_string());
        if let (Some(run_dir), 1..) = (&self.run_dir, self.hang_timeout) {
            command.arg("--run-dir").arg(run_dir);
            command.arg("--hang-timeout").arg(self.hang_timeout.to_string());
        }
        command.arg(&self.worker).arg("--").args(&self.worker_args);
        command
    }
}

fn divide(ranks: usize, cores: usize, bind: CpuBind) -> Result<(bool, usize)> {
    match (ranks, bind) {
        (0, _) => Err(Error::NoRanks),
        (_, CpuBind::None) => Ok((ranks > cores, 0)),
        (_, CpuBind::Cores) if ranks > cores => Err(Error::TooFewCores { ranks, cores }),
        (_, CpuBind::Cores) => Ok((false, cores / ranks)),
    }
}

fn find_worker(given: Option<PathBuf>, wrapper: &Path) -> Result<PathBuf> {
    if let Some(path) = given {
        // Without a slash, executing it would look in PATH instead of here.
        let absolute = std::path::absolute(&path).map_err(Error::io("find", &path))?;
        return if machine::is_executable(&absolute) { Ok(absolute) } else { Err(Error::BadWorker { path }) };
    }
    let folder = wrapper.parent().unwrap_or(Path::new("/"));
    let beside = folder.join("ilm-worker");
    if machine::is_executable(&beside) {
        return Ok(beside);
    }
    machine::find_in_path("ilm-worker").ok_or_else(|| Error::NoWorker { beside: folder.to_path_buf() })
}

/// The run directory that the worker's arguments name.
pub fn run_dir(worker_args: &[OsString]) -> Option<PathBuf> {
    let mut args = worker_args.iter();
    while let Some(arg) = args.next() {
        if arg == "--run-dir" {
            return args.next().map(PathBuf::from);
        }
        if let Some(value) = arg.as_bytes().strip_prefix(b"--run-dir=") {
            return Some(OsStr::from_bytes(value).into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    fn plan(ranks: usize, oversubscribed: bool) -> RunPlan {
        RunPlan {
            ranks,
            oversubscribed,
            cores_per_rank: 0,
            mpirun: "/usr/bin/mpirun".into(),
            wrapper: "/bin/ilm-launch".into(),
            worker: "/bin/ilm-worker".into(),
            worker_args: os(&["train", "--run-dir", "runs/a", "trainer.max_steps=3"]),
            run_dir: Some("runs/a".into()),
            hang_timeout: 600,
            restarts: RestartPolicy { most: 0, delay: Duration::ZERO },
        }
    }

    #[test]
    fn only_more_ranks_than_cores_oversubscribe() {
        assert_eq!(divide(4, 4, CpuBind::None).unwrap(), (false, 0));
        assert_eq!(divide(5, 4, CpuBind::None).unwrap(), (true, 0));
        assert_eq!(divide(3, 8, CpuBind::Cores).unwrap(), (false, 2));
        assert!(matches!(divide(5, 4, CpuBind::Cores), Err(Error::TooFewCores { ranks: 5, cores: 4 })));
        assert!(matches!(divide(0, 4, CpuBind::None), Err(Error::NoRanks)));
    }

    #[test]
    fn run_dir_is_found_in_both_forms() {
        assert_eq!(run_dir(&os(&["train", "--run-dir", "a b"])), Some("a b".into()));
        assert_eq!(run_dir(&os(&["--run-dir=x", "seed=1"])), Some("x".into()));
        assert_eq!(run_dir(&os(&["--run-directory", "x", "--run-dir"])), None);
    }

    #[test]
    fn the_command_ends_with_the_wrapped_worker_unchanged() {
        let (session, _reader) = Session::create().unwrap();
        let command = plan(8, true).command(&session);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words[..5], ["-n", "8", "--oversubscribe", "--bind-to", "none"]);
        let worker = words.iter().position(|word| *word == "/bin/ilm-worker").unwrap();
        assert_eq!(words[worker + 1..], ["--", "train", "--run-dir", "runs/a", "trainer.max_steps=3"]);
        assert!(words.contains(&"runs/a/logs"));
        assert!(!plan(1, false).command(&session).get_args().any(|word| word == "--oversubscribe"));
    }

    #[test]
    fn a_worker_beside_the_launcher_wins_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let launcher = folder.path().join("ilm-launch");
        let missing = find_worker(Some("no/such".into()), &launcher).unwrap_err();
        assert_eq!(missing.to_string(), "--worker no/such is not an executable file");
        let nowhere = find_worker(None, &launcher).unwrap_err().to_string();
        assert!(nowhere.contains(folder.path().to_str().unwrap()), "{nowhere}");
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("ilm-worker")).unwrap();
        assert_eq!(find_worker(None, &launcher).unwrap(), folder.path().join("ilm-worker"));
    }
}
