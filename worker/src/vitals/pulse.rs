//! The heartbeat: a thread that writes a file while its rank gives signs of life.
//!
//! What lies in `RUN/heartbeats/rank-K.json`, and who reads it, is written down in `ilm-launch`, module `heartbeat`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{Flight, Phase, VITALS, place, stacks};
use crate::host;
use crate::telemetry;

/// Between two looks at the rank.
const PERIOD: Duration = Duration::from_secs(1);
/// A heartbeat of another process that is no older is taken for one of a run that goes on.
const LATELY: Duration = Duration::from_secs(30);
const HEARTBEATS: &str = "heartbeats";

/// Begins to write heartbeat and flight record of `rank` into the run directory, for as long as this process lives. What an
/// earlier run left of ranks that do not exist any more is removed by rank 0. Failing is no reason to end a run, but is told.
pub fn attach(run_dir: &Path, rank: usize, world_size: usize) {
    if let Err(error) = begin(run_dir, rank, world_size) {
        telemetry::warn(&format!("rank {rank} has no heartbeat in {}: {error}", run_dir.display()));
    }
}

/// The same for a job beside a run, which has its files there while it goes on.
pub fn attach_unless_taken(run_dir: &Path, rank: usize, world_size: usize) {
    if !is_fresh(&run_dir.join(HEARTBEATS).join(format!("rank-{rank}.json"))) {
        attach(run_dir, rank, world_size);
    }
}

/// Whether a heartbeat was written lately by a process that may still be there.
fn is_fresh(path: &Path) -> bool {
    let read = || -> Option<bool> {
        let beat: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let age = fs::metadata(path).ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let is_gone = beat["host"] == host::name() && !Path::new(&format!("/proc/{}", beat["pid"])).exists();
        Some(age < LATELY && !is_gone)
    };
    read().unwrap_or(false)
}

fn begin(run_dir: &Path, rank: usize, world_size: usize) -> io::Result<()> {
    let folder = run_dir.join(HEARTBEATS);
    fs::create_dir_all(&folder)?;
    if rank == 0 {
        remove_beyond(&folder, world_size)?;
    }
    let flight = Flight::create(&folder.join(format!("rank-{rank}.flight")))?;
    if VITALS.flight.set(flight).is_err() {
        return Ok(());
    }
    VITALS.note(super::flight::PLACE, None);
    stacks::prepare()?;
    let heart = Heart { path: folder.join(format!("rank-{rank}.json")), rank, host: host::name() };
    heart.beat()?;
    std::thread::Builder::new().name("ilm-heartbeat".into()).spawn(move || heart.run())?;
    Ok(())
}

struct Heart {
    path: PathBuf,
    rank: usize,
    host: String,
}

impl Heart {
    fn run(&self) {
        let mut seen = u64::MAX;
        while !VITALS.closed.load(Ordering::Relaxed) {
            let signs = VITALS.signs.load(Ordering::Relaxed);
            let here = place();
            // A rank that stands still in work of its own must look so; one that waits for others is alive.
            if signs != seen || here.waits || here.phase == Phase::End {
                seen = signs;
                // A disk that is full is no reason to end a run that can go on, nor to say so every second.
                let _ = self.beat();
            }
            std::thread::sleep(PERIOD);
        }
    }

    fn beat(&self) -> io::Result<()> {
        let here = place();
        let last = here
            .last
            .map(|call| json!({"name": call.name, "sequence": call.number, "bytes": call.bytes as u64}));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let beat = json!({
            "rank": self.rank,
            "pid": std::process::id(),
            "host": self.host,
            "phase": here.phase.name(),
            "step": here.step,
            "last_collective": last,
            "waits": here.waits,
            "updated_unix_ms": now.as_millis() as u64,
        });
        let (staged, text) = (self.path.with_extension("tmp"), beat.to_string() + "\n");
        fs::write(&staged, &text)
            .and_then(|()| fs::rename(&staged, &self.path))
            .or_else(|_| self.write_over(text))
    }

    /// Where a disk has no room for a second file the first one has: a rank must not look dead because a disk is full.
    fn write_over(&self, mut text: String) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        let old = file.metadata()?.len() as usize;
        // In one piece, and blanks behind it: who reads meanwhile finds no half of the old text.
        text.extend(std::iter::repeat_n(' ', old.saturating_sub(text.len())));
        file.write_all_at(text.as_bytes(), 0)
    }
}

/// Removes the files of ranks from `world_size` on.
fn remove_beyond(folder: &Path, world_size: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let rank = name.and_then(|name| name.strip_prefix("rank-")?.parse::<usize>().ok());
        if rank.is_some_and(|rank| rank >= world_size) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_ranks_that_are_no_more_go_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["rank-1.json", "rank-2.json", "rank-10.flight", "rank-x.json", "notes"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_beyond(folder.path(), 2).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes", "rank-1.json", "rank-x.json"]);
    }

    #[test]
    fn a_disk_without_room_for_a_second_file_keeps_the_first_one_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let heart = Heart { path: folder.path().join("rank-0.json"), rank: 0, host: "here".into() };
        fs::write(&heart.path, format!("{{\"rank\":7}}{}", " ".repeat(1000))).unwrap();
        // Nothing can be written there.
        fs::create_dir(folder.path().join("rank-0.tmp")).unwrap();
        heart.beat().unwrap();
        let text = fs::read_to_string(&heart.path).unwrap();
        let beat: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&beat["rank"], &beat["host"], text.len()), (&json!(0), &json!("here"), 1010));
    }

    #[test]
    fn a_heartbeat_of_a_live_process_is_respected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.json");
        let is_fresh_of = |host: &str, pid: u32| {
            fs::write(&path, json!({"host": host, "pid": pid}).to_string()).unwrap();
            is_fresh(&path)
        };
        assert!(!is_fresh(&path));
        assert!(is_fresh_of(&host::name(), std::process::id()));
        assert!(!is_fresh_of(&host::name(), u32::MAX));
        assert!(is_fresh_of("elsewhere", u32::MAX));
        let old = SystemTime::now() - 2 * LATELY;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(!is_fresh(&path));
    }
}
