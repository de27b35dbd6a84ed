//! The checkpoints of one run: only a renamed directory counts, and only one process writes.
//!
//! `<run-dir>/checkpoints/` holds `step-000012345/` for every committed checkpoint. Names that begin with a dot are
//! never read: `.tmp-step-...` is being written or removed, `.old-step-...` is being replaced by a newer save of the
//! same step, `.lock` is held by the process that writes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use files::{FileLock, LockError};

use crate::config::CheckpointConfig;
use crate::disk;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::manifest::{MANIFEST_FILE, Manifest, RunState, ShardRecord};
use crate::metrics;
use crate::read::Checkpoint;
use crate::retention::{expendable, ranked};

const STEP: &str = "step-";
const STAGING: &str = ".tmp-";
const REPLACED: &str = ".old-";
const LOCK: &str = ".lock";

/// How long is waited before a checkpoint that the system failed to read is read again: five seconds in all, in which a network
/// file system finds its server again. What lasts longer is for a person.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(1400),
    Duration::from_millis(2800),
];

/// The checkpoints of one run directory. Reading needs no more than this; the methods that write take a lock for the
/// life of the store, so that two runs cannot share a directory by mistake.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    lock: Option<FileLock>,
    /// The step being saved; its staging directory is not stale.
    staging: Option<u64>,
    just_saved: Option<u64>,
    /// Steps whose every byte this process has checked, so that pruning reads each checkpoint once.
    verified: BTreeSet<u64>,
}

/// A save that has begun: where the shards go.
#[derive(Debug)]
#[must_use = "a save that has begun is to be committed or abandoned"]
pub struct Staging {
    dir: PathBuf,
    step: u64,
}

impl Staging {
    /// Where every rank writes its shard.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What a search for the newest valid checkpoint found.
///
/// Without a checkpoint *and* without rejected ones the run is new. Without a checkpoint but with rejected ones the
/// run has lost all it had, and starting from nothing is a decision for a person.
#[derive(Debug)]
pub struct Found {
    /// The newest checkpoint of which every byte is right.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are damaged, newest first, with the reason.
    pub rejected: Vec<(PathBuf, Error)>,
}

impl Store {
    /// The store of a run directory, which need not exist yet. Changes nothing on the disk.
    ///
    /// # Errors
    /// [`Error::NotADirectory`] if a file is in the way.
    pub fn open(run_dir: impl AsRef<Path>) -> Result<Self> {
        let dir = run_dir.as_ref().join("checkpoints");
        match dir.metadata() {
            Ok(found) if !found.is_dir() => return Err(Error::NotADirectory { path: dir }),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("read", &dir, e)),
            _ => {}
        }
        Ok(Self { dir, lock: None, staging: None, just_saved: None, verified: BTreeSet::new() })
    }

    /// The steps of all committed checkpoints, oldest first, valid or not.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn list(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| parse_step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Opens the checkpoint of one step; contents are verified as they are read.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and a manifest of another step.
    pub fn get(&self, step: u64) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::open(self.step_dir(step))?;
        let found = checkpoint.state().step;
        if found != step {
            let path = checkpoint.dir().join(MANIFEST_FILE);
            return Err(Error::BadManifest { path, what: format!("it is of step {found}") });
        }
        Ok(checkpoint)
    }

    /// Searches from the newest checkpoint down for one of which every byte is right.
    ///
    /// # Errors
    /// A directory or a checkpoint that cannot be read, or one of another format version: it may be good, so an older one must
    /// not take its place. What the system fails to read is tried for some seconds. Damaged checkpoints are reported
    /// in [`Found::rejected`].
    pub fn newest_valid(&self) -> Result<Found> {
        self.newest_valid_after(&PAUSES)
    }

    fn newest_valid_after(&self, pauses: &[Duration]) -> Result<Found> {
        let mut rejected = Vec::new();
        for step in self.list()?.into_iter().rev() {
            match patiently(pauses, || self.get_verified(step)) {
                Ok(checkpoint) => return Ok(Found { checkpoint: Some(checkpoint), rejected }),
                Err(e) if e.is_damage() => rejected.push((self.step_dir(step), e)),
                Err(e) => return Err(e),
            }
        }
        Ok(Found { checkpoint: None, rejected })
    }

    /// The directory that [`Store::begin`] makes for a step, for the ranks that did not call it.
    pub fn staging_dir(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{STAGING}{}", step_name(step)))
    }

    /// Begins a save: an empty staging directory that all ranks can write to once they know that this has returned.
    /// What is left of a save that was neither committed nor abandoned is removed.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes here, otherwise the failure of the disk.
    pub fn begin(&mut self, step: u64) -> Result<Staging> {
        self.take_lock()?;
        if let Some(left) = self.staging.take() {
            disk::remove(&self.staging_dir(left))?;
        }
        let dir = self.staging_dir(step);
        disk::remove(&dir)?;
        disk::create_dir(&dir)?;
        self.staging = Some(step);
        Ok(Staging { dir, step })
    }

    /// Makes a save valid: the manifest last, then the rename that makes it visible. A checkpoint of the same step
    /// is replaced. If this fails, the staged files are removed and the older checkpoints are as they were.
    ///
    /// `records` are those of all ranks, in any order.
    ///
    /// # Errors
    /// [`Error::Unsavable`] if the shards do not make up every section exactly once, [`Error::MissingShard`] or
    /// [`Error::WrongSize`] if rank 0 does not see what the ranks wrote, otherwise the failure of the disk.
    pub fn commit(
        &mut self,
        staging: Staging,
        layout: Layout,
        mut records: Vec<ShardRecord>,
        state: RunState,
    ) -> Result<PathBuf> {
        records.sort_by_key(|record| record.rank);
        let manifest = Manifest { state, layout, shards: records };
        let committed = write_manifest(&staging, &manifest).and_then(|()| self.publish(&staging));
        if committed.is_err()
            && let Err(e) = self.abandon(staging)
        {
            tracing::warn!("a failed save could not be removed: {e}");
        }
        committed
    }

    /// Gives up a save that some rank could not finish and frees its space.
    ///
    /// # Errors
    /// The failure of the disk; the rest is removed by the next [`Store::begin`] or [`Store::remove_stale`].
    pub fn abandon(&mut self, staging: Staging) -> Result<()> {
        disk::remove(&staging.dir)?;
        self.staging = None;
        Ok(())
    }

    /// Removes what crashed processes left behind, and finishes a replacement that a crash cut in two. To be called
    /// by rank 0 at start; also shows early that the run directory can be written.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes here, otherwise the failure of the disk; what cannot be removed is only warned of.
    pub fn remove_stale(&mut self) -> Result<Vec<PathBuf>> {
        self.take_lock()?;
        let in_use = self.staging.map(|step| self.staging_dir(step));
        let mut removed = Vec::new();
        for name in self.names()? {
            let path = self.dir.join(&name);
            match name.strip_prefix(REPLACED).and_then(parse_step) {
                Some(step) if !self.step_dir(step).exists() => {
                    disk::rename(&path, &self.step_dir(step))?;
                    disk::sync_dir(&self.dir)?;
                }
                None if !name.starts_with(STAGING) || Some(&path) == in_use.as_ref() => {}
                _ => removed.extend(gone(path)),
            }
        }
        Ok(removed)
    }

    /// Records a figure of the model at `step`, as a validation found it, with the checkpoint of that step, committed
    /// or about to be; false if there is none.
    ///
    /// # Errors
    /// [`Error::Unsavable`] for a value that is not finite, [`Error::Locked`], otherwise the failure of the disk.
    pub fn record_metric(&mut self, step: u64, name: &str, value: f64) -> Result<bool> {
        self.take_lock()?;
        let staged = self.staging == Some(step);
        let dir = if staged { self.staging_dir(step) } else { self.step_dir(step) };
        if !dir.exists() {
            return Ok(false);
        }
        metrics::record(&dir, name, value).map(|_| true)
    }

    /// Removes old checkpoints; to be called after a commit. The newest `keep_last` *valid* ones, the `keep_best` valid
    /// ones with the best figures, the one just saved and the multiples of `keep_every` stay, so damage to the newest
    /// ones never costs the last good one.
    ///
    /// Each checkpoint that is kept for being valid is read back and verified once by this process. What cannot be removed, since
    /// somebody on a network file system reads it, for instance, is warned of and tried again by [`Store::remove_stale`].
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Locked`], or the checkpoints cannot be listed.
    pub fn prune(&mut self, config: &CheckpointConfig) -> Result<Vec<PathBuf>> {
        self.take_lock()?;
        let mut removed = Vec::new();
        for step in self.expendable(config)? {
            // Out of sight first: a directory that is half removed must not look like a damaged checkpoint.
            let hidden = self.hidden_name(step);
            if let Err(e) = disk::rename(&self.step_dir(step), &hidden) {
                tracing::warn!("an old checkpoint stays: {e}");
                continue;
            }
            gone(hidden);
            self.verified.remove(&step);
            removed.push(self.step_dir(step));
        }
        Ok(removed)
    }

    /// A free name for a checkpoint that is about to be removed: one of before may still be there.
    fn hidden_name(&self, step: u64) -> PathBuf {
        let name = |attempt: u64| self.dir.join(format!("{STAGING}removed-{}-{attempt}", step_name(step)));
        (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(u64::MAX))
    }

    /// The steps that [`Store::prune`] would remove. Changes nothing on the disk and takes no lock.
    ///
    /// # Errors
    /// [`Error::Config`], otherwise the failure of the disk.
    pub fn expendable(&mut self, config: &CheckpointConfig) -> Result<Vec<u64>> {
        config.validate()?;
        let steps = self.list()?;
        let newest: Vec<u64> = steps.iter().rev().copied().collect();
        let valid = self.first_valid(&newest, config.keep_last);
        let figures = config.monitor.as_ref().map_or(Vec::new(), |monitor| self.figures(&steps, monitor));
        let mut spared = self.first_valid(&ranked(figures, config.mode), config.keep_best);
        spared.extend(self.just_saved);
        Ok(expendable(&steps, &valid, &spared, config))
    }

    /// The first `count` of `steps` that are valid.
    fn first_valid(&mut self, steps: &[u64], count: usize) -> Vec<u64> {
        let mut valid = Vec::new();
        for &step in steps {
            if valid.len() == count {
                break;
            }
            match self.check_once(step) {
                Ok(()) => valid.push(step),
                Err(e) => tracing::warn!("a checkpoint is not valid and does not count as kept: {e}"),
            }
        }
        valid
    }

    /// The figure `name` of every checkpoint that has it.
    fn figures(&self, steps: &[u64], name: &str) -> Vec<(u64, f64)> {
        let figure = |&step: &u64| match metrics::read(&self.step_dir(step)) {
            Ok(metrics) => metrics.get(name).map(|&value| (step, value)),
            Err(e) => {
                tracing::warn!("a checkpoint does not count among the best: {e}");
                None
            }
        };
        steps.iter().filter_map(figure).collect()
    }

    fn get_verified(&self, step: u64) -> Result<Checkpoint> {
        let checkpoint = self.get(step)?;
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    /// Verifies every byte the first time; afterwards that manifest and shards are still there.
    fn check_once(&mut self, step: u64) -> Result<()> {
        if self.verified.contains(&step) {
            self.get(step)?;
        } else {
            self.get_verified(step)?;
            self.verified.insert(step);
        }
        Ok(())
    }

    /// Renames a staged checkpoint into place; until then the one it replaces, if any, is only set aside.
    fn publish(&mut self, staging: &Staging) -> Result<PathBuf> {
        let target = self.step_dir(staging.step);
        let replaced = self.dir.join(format!("{REPLACED}{}", step_name(staging.step)));
        self.verified.remove(&staging.step);
        if target.exists() {
            disk::remove(&replaced)?;
            disk::rename(&target, &replaced)?;
        }
        if let Err(e) = disk::rename(&staging.dir, &target) {
            if replaced.exists() {
                disk::rename(&replaced, &target)?;
            }
            return Err(e);
        }
        disk::sync_dir(&self.dir)?;
        self.staging = None;
        self.just_saved = Some(staging.step);
        if let Err(e) = disk::remove(&replaced) {
            tracing::warn!("the checkpoint that was replaced is still there: {e}");
        }
        Ok(target)
    }

    /// Makes this process the one that writes here, until the store is dropped.
    fn take_lock(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        disk::create_dir(&self.dir)?;
        self.dir.parent().map_or(Ok(()), disk::sync_dir)?;
        let path = self.dir.join(LOCK);
        self.lock = Some(FileLock::take(path.clone()).map_err(|error| match error {
            LockError::Held { holder } => Error::Locked { path: self.dir.clone(), holder },
            LockError::Io(e) => Error::io("write", &path, e),
        })?);
        Ok(())
    }

    /// The names of all entries; none if the directory does not exist yet.
    fn names(&self) -> Result<Vec<String>> {
        let read = || {
            let entries: Vec<_> = std::fs::read_dir(&self.dir)?.collect::<io::Result<_>>()?;
            Ok(entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        };
        read().or_else(|e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(Error::io("read", &self.dir, e)),
        })
    }

    pub(crate) fn step_dir(&self, step: u64) -> PathBuf {
        self.dir.join(step_name(step))
    }
}

/// What `attempt` gives in the end: while the system fails to read, it is made again after each pause.
fn patiently<T>(pauses: &[Duration], mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for pause in pauses {
        match attempt() {
            Err(e @ Error::Io { .. }) => tracing::warn!("a checkpoint is read again soon: {e}"),
            other => return other,
        }
        std::thread::sleep(*pause);
    }
    attempt()
}

/// Writes the manifest into the staging directory, once it is sure that it describes what lies there.
fn write_manifest(staging: &Staging, manifest: &Manifest) -> Result<()> {
    let path = staging.dir.join(MANIFEST_FILE);
    let unsavable = |what| Error::Unsavable { path: path.clone(), what };
    if manifest.state.step != staging.step {
        return Err(unsavable(format!(
            "the save is of step {} and its state of {}",
            staging.step, manifest.state.step
        )));
    }
    manifest.validate().map_err(unsavable)?;
    let text = manifest.to_text().map_err(|e| unsavable(e.to_string()))?;
    disk::write_new(&path, text.as_bytes())?;
    Checkpoint::open(&staging.dir)?;
    disk::sync_dir(&staging.dir)
}

fn step_name(step: u64) -> String {
    format!("{STEP}{step:09}")
}

/// The step of a directory's name, if it is exactly the name that this crate would give it.
fn parse_step(name: &str) -> Option<u64> {
    let step = name.strip_prefix(STEP)?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

/// The path, removed; none if that failed, which ends no run: a file may be open on another machine.
fn gone(path: PathBuf) -> Option<PathBuf> {
    match disk::remove(&path) {
        Ok(()) => Some(path),
        Err(e) => {
            tracing::warn!("a left-over stays: {e}");
            None
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
