//! The heartbeat of a rank: a small file in which the worker says where it is, read when it dies or stands still.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What lies in `RUN/heartbeats/rank-K.json`: one JSON object, replaced as a whole (written beside it and renamed), so
/// that a reader never sees a part. On a full disk, which has no room for a second file, it is written over in one piece, with
/// blanks behind it where the old one was longer.
///
/// A thread of the worker writes it about once a second, but only if the thread that trains has done something since: changed
/// phase or step, begun or ended a collective, finished a micro-batch, a batch of an evaluation or an insertion; or if it stands
/// still because it waits for other ranks. So a file that stands still means a rank that hangs in work of its own, or is stopped.
/// What a rank did in its very last moment is in its [flight record](crate::flight). A rank without a file is not watched. Unknown
/// keys are passed over.
///
/// ```json
/// {"rank":1,"pid":4711,"host":"node3","phase":"train","step":1200,
///  "last_collective":{"name":"gradients","sequence":8123,"bytes":13631488},"waits":false,"updated_unix_ms":1767225600000}
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The rank.
    pub rank: usize,
    /// The worker's process number on its host.
    pub pid: u32,
    /// The host's name, as `gethostname` gives it.
    pub host: String,
    /// What it does: "start", "train", "validate", "save" and the like.
    pub phase: String,
    /// Finished optimizer steps.
    pub step: u64,
    /// The collective that was entered last.
    #[serde(default)]
    pub last_collective: Option<Collective>,
    /// Whether it stands still for other ranks.
    #[serde(default)]
    pub waits: bool,
    /// When this was written, in milliseconds since 1970 by the host's clock.
    pub updated_unix_ms: u64,
}

/// A collective operation, as the ranks compare it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collective {
    /// Its name, the same on every rank.
    pub name: String,
    /// Its number since the start, the same on every rank; a smaller one is behind.
    pub sequence: u64,
    /// Bytes that one rank puts in.
    pub bytes: u64,
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (number {}, {} bytes)", self.name, self.sequence, self.bytes)
    }
}

impl Heartbeat {
    /// How long ago it was written; zero if that is in the future of this host's clock.
    pub fn age(&self, now: SystemTime) -> Duration {
        Duration::from_millis(unix_ms(now).saturating_sub(self.updated_unix_ms))
    }

    /// Whether it was written since `began` (milliseconds since 1970), or by the process of one that is `known` to have been. A clock
    /// that is set back makes all later ones look as if an earlier run had left them.
    pub fn is_since(&self, began: u64, known: Option<&Self>) -> bool {
        self.updated_unix_ms >= began || known.is_some_and(|known| known.pid == self.pid)
    }
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {}, step {}", self.phase, self.step)?;
        match &self.last_collective {
            None => Ok(()),
            Some(call) => write!(f, ", last collective {call}"),
        }?;
        if self.waits { write!(f, ", waiting for other ranks") } else { Ok(()) }
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The folder of heartbeats.
pub fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("heartbeats")
}

/// The heartbeat of `rank` if there is one written at `since` (milliseconds since 1970) or later: older ones are of
/// another run.
pub fn read(run_dir: &Path, rank: usize, since: u64) -> Option<Heartbeat> {
    let text = fs::read(folder(run_dir).join(format!("rank-{rank}.json"))).ok()?;
    let heartbeat: Heartbeat = serde_json::from_slice(&text).ok()?;
    (heartbeat.rank == rank && heartbeat.updated_unix_ms >= since).then_some(heartbeat)
}

/// All heartbeats by rank; files that are none are passed over.
pub fn read_all(run_dir: &Path) -> Vec<Heartbeat> {
    let Ok(entries) = fs::read_dir(folder(run_dir)) else { return Vec::new() };
    let rank = |name: &str| name.strip_prefix("rank-")?.strip_suffix(".json")?.parse().ok();
    let mut ranks: Vec<usize> = entries.filter_map(|entry| rank(entry.ok()?.file_name().to_str()?)).collect();
    ranks.sort_unstable();
    ranks.into_iter().filter_map(|rank| read(run_dir, rank, 0)).collect()
}

/// The rank that is furthest behind: the others wait for it, though they may be noticed first.
pub fn last_of(heartbeats: &[Heartbeat]) -> Option<&Heartbeat> {
    let progress = |beat: &&Heartbeat| {
        (beat.last_collective.as_ref().map_or(0, |last| last.sequence), beat.step, beat.updated_unix_ms)
    };
    heartbeats.iter().min_by_key(progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(rank: usize, sequence: u64, updated_unix_ms: u64) -> Heartbeat {
        let last_collective = Some(Collective { name: "gradients".into(), sequence, bytes: 64 });
        let (phase, host) = ("train".into(), "node".into());
        Heartbeat { rank, pid: 1, host, phase, step: 7, last_collective, waits: false, updated_unix_ms }
    }

    #[test]
    fn what_is_no_heartbeat_or_of_another_run_is_passed_over() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!((read_all(run.path()), read(run.path(), 0, 0)), (Vec::new(), None));
        fs::create_dir(folder(run.path())).unwrap();
        let put = |name: &str, text: &str| fs::write(folder(run.path()).join(name), text).unwrap();
        put("rank-10.json", &serde_json::to_string(&beat(10, 3, 50)).unwrap());
        put(
            "rank-2.json",
            r#"{"rank":2,"pid":9,"host":"h","phase":"start","step":0,"updated_unix_ms":60,"more":1}"#,
        );
        put("rank-3.json", r#"{"rank":3,"pi"#);
        put("rank-4.json", &serde_json::to_string(&beat(5, 3, 50)).unwrap());
        put("rank-x.json", "{}");
        put("rank-2.tmp", "{}");
        let ranks: Vec<usize> = read_all(run.path()).iter().map(|beat| beat.rank).collect();
        assert_eq!(ranks, [2, 10]);
        assert_eq!(read(run.path(), 10, 50), Some(beat(10, 3, 50)));
        assert_eq!(read(run.path(), 10, 51), None);
    }

    #[test]
    fn the_rank_that_is_behind_is_told_from_those_that_wait_for_it() {
        let beats = [beat(0, 8, 100), beat(1, 7, 105), beat(2, 8, 99)];
        assert_eq!(last_of(&beats).map(|beat| beat.rank), Some(1));
        assert_eq!(last_of(&[beat(0, 8, 100), beat(2, 8, 99)]).map(|beat| beat.rank), Some(2));
        assert_eq!(last_of(&[]), None);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_known_process_a_stranger() {
        let known = beat(0, 3, 50);
        assert!(known.is_since(50, None) && !known.is_since(51, None));
        let later = beat(0, 4, 20);
        assert!(later.is_since(50, Some(&known)) && !later.is_since(50, None));
        let left_behind = Heartbeat { pid: 2, ..later };
        assert!(!left_behind.is_since(50, Some(&known)));
    }

    #[test]
    fn a_heartbeat_reads_as_a_place_in_the_run() {
        let text = "phase train, step 7, last collective gradients (number 8, 64 bytes)";
        assert_eq!(beat(0, 8, 0).to_string(), text);
        let now = UNIX_EPOCH + Duration::from_millis(90);
        assert_eq!(beat(0, 8, 40).age(now), Duration::from_millis(50));
        assert_eq!(beat(0, 8, 100).age(now), Duration::ZERO);
    }
}
