//! Every decision of a run, made and checked before any process is started.

use crate::args::{CpuBind, RunArgs};
use crate::error::{Error, Result};
use crate::hosts::{self, Host};
use crate::machine;
use crate::restart::RestartPolicy;
use crate::session::{Events, Session};
use crate::worker_args;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where ranks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// All of them here.
    Here {
        /// Whether mpirun is not to count: they share cores, or it would count the tasks of a Slurm allocation instead.
        oversubscribed: bool,
    },
    /// To several machines.
    Elsewhere {
        /// Which, reached by the agent; none: those of the Slurm allocation, by Slurm.
        hosts: Vec<Host>,
        /// What starts a command on a host, as ssh does.
        agent: PathBuf,
        /// The network interface for all traffic.
        interface: Option<String>,
        /// The kind of MPI if srun starts the ranks instead of mpirun.
        srun: Option<String>,
    },
}

/// What will be started.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// Number of ranks, at least 1.
    pub ranks: usize,
    /// Where they go.
    pub place: Place,
    /// Whether each rank gets cores of its own.
    pub bind_cores: bool,
    /// Parameters of Open MPI, names and values.
    pub mca: Vec<String>,
    /// The `mpirun` executable, or that of `srun`.
    pub mpirun: PathBuf,
    /// This executable, the wrapper around each rank.
    pub wrapper: PathBuf,
    /// The worker executable.
    pub worker: PathBuf,
    /// Its arguments.
    pub worker_args: Vec<OsString>,
    /// The worker's run directory, if its arguments say which.
    pub run_dir: Option<PathBuf>,
    /// Seconds that the start of all ranks may take; 0: any number.
    pub start_timeout: u64,
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
        let (ranks, place) = place(&args)?;
        let run_dir = worker_args::run_dir(&args.worker_args);
        if matches!(place, Place::Elsewhere { .. }) && run_dir.is_none() {
            return Err(Error::NoSharedFolder);
        }
        let wrapper = std::env::current_exe().map_err(Error::io("find", Path::new("/proc/self/exe")))?;
        Ok(Self {
            ranks,
            place,
            bind_cores: args.cpu_bind == CpuBind::Cores,
            mca: args.mca,
            mpirun: match args.srun {
                Some(_) => machine::find_in_path("srun").ok_or(Error::NoAllocation)?,
                None => machine::find_in_path("mpirun").ok_or(Error::NoMpirun)?,
            },
            worker: find_worker(args.worker, &wrapper)?,
            wrapper,
            run_dir,
            start_timeout: args.start_timeout,
            hang_timeout: args.hang_timeout,
            restarts: RestartPolicy { most: args.max_restarts, delay: args.restart_delay },
            worker_args: args.worker_args,
        })
    }

    /// Where `rank-K.log` goes.
    pub fn logs(&self, session: &Session) -> PathBuf {
        self.run_dir.as_deref().unwrap_or(session.folder()).join("logs")
    }

    /// A listener if ranks go to other machines, otherwise a named pipe, in a folder of its own.
    ///
    /// # Errors
    /// Neither can be made.
    pub fn session(&self) -> Result<(Session, Events)> {
        match &self.place {
            Place::Here { .. } => Session::create(),
            Place::Elsewhere { interface, .. } => Session::create_for_hosts(interface.as_deref()),
        }
    }
}

/// Counts the ranks and finds out where they go.
fn place(args: &RunArgs) -> Result<(usize, Place)> {
    let elsewhere = |hosts| {
        let (agent, interface, srun) = (args.agent.clone(), args.interface.clone(), args.srun.clone());
        Place::Elsewhere { hosts, agent, interface, srun }
    };
    if let Some(list) = &args.hosts {
        let hosts = hosts::parse(list)?;
        let room = hosts.iter().map(|host| host.ranks).sum();
        return match args.ranks.unwrap_or(room) {
            0 => Err(Error::NoRanks),
            ranks if ranks > room => Err(Error::TooManyRanks { ranks, room }),
            ranks => Ok((ranks, elsewhere(hosts))),
        };
    }
    let ranks = args.ranks.ok_or(Error::HowManyRanks)?;
    let nodes = allocated_nodes();
    match (&args.srun, nodes) {
        _ if ranks == 0 => return Err(Error::NoRanks),
        (Some(_), 0) => return Err(Error::NoAllocation),
        (Some(_), _) | (None, 2..) => return Ok((ranks, elsewhere(Vec::new()))),
        (None, _) => {}
    }
    let share_cores = divide(ranks, machine::usable_cores().len(), args.cpu_bind)?;
    Ok((ranks, Place::Here { oversubscribed: share_cores || nodes > 0 }))
}

/// Nodes of the Slurm allocation in which this process runs, 0 without one.
pub fn allocated_nodes() -> usize {
    std::env::var("SLURM_JOB_NUM_NODES").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or(0)
}

/// Whether ranks share cores.
fn divide(ranks: usize, cores: usize, bind: CpuBind) -> Result<bool> {
    match bind {
        _ if ranks == 0 => Err(Error::NoRanks),
        CpuBind::Cores if ranks > cores => Err(Error::TooFewCores { ranks, cores }),
        _ => Ok(ranks > cores),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_ranks_than_cores_oversubscribe() {
        assert!(!divide(4, 4, CpuBind::None).unwrap());
        assert!(divide(5, 4, CpuBind::None).unwrap());
        assert!(!divide(3, 8, CpuBind::Cores).unwrap());
        assert!(matches!(divide(5, 4, CpuBind::Cores), Err(Error::TooFewCores { ranks: 5, cores: 4 })));
        assert!(matches!(divide(0, 4, CpuBind::None), Err(Error::NoRanks)));
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
