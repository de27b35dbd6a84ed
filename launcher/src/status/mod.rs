//! The state of a run, read from its run directory alone: of one in progress, a dead one or none at all.

mod show;

use crate::args::StatusArgs;
use crate::error::{Error, Result};
use crate::flight::Flight;
use crate::heartbeat::{self, Heartbeat, unix_ms};
use crate::process;
use crate::record::{End, Record};
use crate::run_dir::{latest_metrics, max_steps, newest_checkpoint};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Up to what age a heartbeat is one of a rank that is alive, unless told otherwise.
pub const FRESH: Duration = Duration::from_secs(60);

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Its launcher, or a rank if there is none, gives signs of life.
    Running,
    /// The launcher waits before a restart.
    Waiting,
    /// It ended, and how is known.
    Ended,
    /// Neither goes on nor was its end recorded: launcher or machine were killed.
    Lost,
    /// Nothing is known of a launch, and no rank is alive.
    Idle,
}

impl RunState {
    /// Whether it does, or will by itself.
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Running | Self::Waiting)
    }
}

/// Whether a rank is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RankState {
    /// Its heartbeat is fresh.
    Alive,
    /// Its heartbeat is old, but its process may be there.
    Stale,
    /// Its process, on this host, is gone.
    Gone,
}

/// One rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankStatus {
    /// Whether it is there.
    pub state: RankState,
    /// Seconds since its heartbeat.
    pub age_s: f64,
    /// What it said about itself.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// What it did last, exactly.
    pub flight: Option<Flight>,
}

/// The newest checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CheckpointStatus {
    /// Finished optimizer steps.
    pub step: u64,
    /// Seconds since it was written.
    pub age_s: f64,
}

/// Everything known of a run; what is not known is `None`. Ages are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The folder.
    pub run_dir: PathBuf,
    /// Whether the run goes on.
    pub state: RunState,
    /// Finished optimizer steps, of the last metric.
    pub step: Option<u64>,
    /// Steps after which the run is done.
    pub max_steps: Option<u64>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Examples per second of the last steps.
    pub examples_per_s: Option<f64>,
    /// Since the last metric.
    pub metric_age_s: Option<f64>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
    /// Ranks that have a heartbeat.
    pub ranks: Vec<RankStatus>,
    /// The last launch.
    pub launch: Option<Record>,
    /// How its last attempt that ended did so.
    pub last_end: Option<End>,
    /// Since then.
    pub last_end_age_s: Option<f64>,
}

/// Prints the status of a run.
///
/// # Errors
/// The run directory is no directory.
pub fn status(args: &StatusArgs) -> Result<u8> {
    let status =
        Status::read(&args.run_dir, Duration::from_secs(args.stale_after), &this_host(), SystemTime::now())?;
    let text = if args.json {
        serde_json::to_string(&status).map_err(Error::io("describe", &args.run_dir))?
    } else {
        show::text(&status)
    };
    // A pipe that is closed early wants no more.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    Ok(0)
}

impl Status {
    /// Reads what lies in `run_dir`. A heartbeat is fresh for `fresh`; processes are looked for if they are on `host`.
    ///
    /// # Errors
    /// `run_dir` is no directory.
    pub fn read(run_dir: &Path, fresh: Duration, host: &str, now: SystemTime) -> Result<Self> {
        if !run_dir.is_dir() {
            return Err(Error::NoRunDir { path: run_dir.to_path_buf() });
        }
        let launch = Record::read(run_dir);
        let ranks = ranks(run_dir, launch.as_ref(), fresh, host, now);
        let metrics = latest_metrics(run_dir);
        let age = |time: SystemTime| now.duration_since(time).unwrap_or_default().as_secs_f64();
        let last_end = launch.as_ref().and_then(|launch| launch.end.clone());
        let since = |end: &End| unix_ms(now).saturating_sub(end.unix_ms) as f64 / 1000.0;
        Ok(Self {
            run_dir: run_dir.to_path_buf(),
            state: run_state(launch.as_ref(), &ranks, host),
            step: metrics.map(|metrics| metrics.step),
            max_steps: max_steps(run_dir),
            loss: metrics.and_then(|metrics| metrics.loss),
            examples_per_s: metrics.and_then(|metrics| metrics.examples_per_s),
            metric_age_s: metrics.map(|metrics| age(metrics.written)),
            checkpoint: newest_checkpoint(run_dir)
                .map(|found| CheckpointStatus { step: found.step, age_s: age(found.saved) }),
            ranks,
            last_end_age_s: last_end.as_ref().map(since),
            launch,
            last_end,
        })
    }
}

/// The name of this host, as heartbeats and records have it.
pub fn this_host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

fn ranks(
    run_dir: &Path,
    launch: Option<&Record>,
    fresh: Duration,
    host: &str,
    now: SystemTime,
) -> Vec<RankStatus> {
    let rank_status = |heartbeat: Heartbeat| {
        let age = heartbeat.age(now);
        let state = if heartbeat.host == host && process::name(heartbeat.pid).is_none() {
            RankState::Gone
        } else if age <= fresh {
            RankState::Alive
        } else {
            RankState::Stale
        };
        let flight =
            Flight::read(run_dir, heartbeat.rank, 0, u64::MAX).filter(|flight| flight.pid == heartbeat.pid);
        RankStatus { state, age_s: age.as_secs_f64(), heartbeat, flight }
    };
    let mut ranks: Vec<RankStatus> = heartbeat::read_all(run_dir).into_iter().map(rank_status).collect();
    if let Some(launch) = launch {
        // An earlier run may have had more ranks.
        ranks.retain(|rank| rank.heartbeat.rank < launch.ranks || rank.state == RankState::Alive);
    }
    ranks
}

fn run_state(launch: Option<&Record>, ranks: &[RankStatus], host: &str) -> RunState {
    let any_alive = ranks.iter().any(|rank| rank.state == RankState::Alive);
    let Some(launch) = launch else {
        return if any_alive { RunState::Running } else { RunState::Idle };
    };
    let is_launcher = |name: String| name == "ilm-launch";
    let launcher_lives = if launch.host == host {
        process::name(launch.pid).is_some_and(is_launcher)
    } else {
        // Of a launcher elsewhere the ranks are the only sign.
        any_alive
    };
    // Ranks that this launcher did not start, or another of which nothing is recorded, write heartbeats after its end.
    let outlived = |end: &End| {
        let is_newer = |rank: &RankStatus| rank.heartbeat.updated_unix_ms > end.unix_ms;
        ranks.iter().any(|rank| rank.state == RankState::Alive && is_newer(rank))
    };
    let attempt_ended = launch.end.as_ref().is_some_and(|end| end.unix_ms >= launch.started_unix_ms);
    match (attempt_ended, launcher_lives || any_alive) {
        (false, true) => RunState::Running,
        (false, false) => RunState::Lost,
        (true, _) if launch.end.as_ref().is_some_and(outlived) => RunState::Running,
        (true, _) if launch.host == host && launcher_lives => RunState::Waiting,
        (true, _) => RunState::Ended,
    }
}
