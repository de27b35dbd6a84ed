//! What lies in a checkpoint directory, for people: every committed name with its size, its age and what is wrong with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::manifest::{MANIFEST_FILE, RunState};
use crate::metrics::{self, Metrics};
use crate::store::Store;

/// How much of a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest, and that all shards are there in their sizes.
    Sizes,
    /// Every byte.
    Contents,
}

/// One committed checkpoint, valid or not.
#[derive(Debug)]
pub struct Entry {
    /// The step in its name.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
    /// The bytes of all its files.
    pub bytes: u64,
    /// The time since it was committed; none if there is no manifest or the clock was set back.
    pub age: Option<Duration>,
    /// Where the run stood, or why the checkpoint cannot be used.
    pub state: Result<RunState>,
    /// The figures recorded with it, or why they are lost.
    pub metrics: Result<Metrics>,
}

impl Store {
    /// Describes all committed checkpoints, oldest first. A checkpoint that is removed meanwhile is left out.
    ///
    /// # Errors
    /// A checkpoint directory that cannot be read; damage to a checkpoint is part of its [`Entry`].
    pub fn entries(&self, depth: Depth) -> Result<Vec<Entry>> {
        let describe = |step| self.entry(step, depth);
        let entries: Vec<_> = self.list()?.into_iter().map(describe).collect();
        Ok(entries.into_iter().filter(|entry| entry.path.exists()).collect())
    }

    fn entry(&self, step: u64, depth: Depth) -> Entry {
        let path = self.step_dir(step);
        let state = self.get(step).and_then(|checkpoint| match depth {
            Depth::Sizes => Ok(checkpoint.state().clone()),
            Depth::Contents => checkpoint.verify().map(|()| checkpoint.state().clone()),
        });
        let committed = path.join(MANIFEST_FILE).metadata().and_then(|found| found.modified());
        let age = committed.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        Entry { step, bytes: bytes_in(&path), age, state, metrics: metrics::read(&path), path }
    }
}

impl Entry {
    /// Why the checkpoint cannot be used, if so.
    pub fn fault(&self) -> Option<&Error> {
        self.state.as_ref().err()
    }
}

/// The size of all files of a directory; those that cannot be seen do not count.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{flip, save};

    #[test]
    fn every_committed_name_is_described_and_contents_only_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert!(store.entries(Depth::Sizes).unwrap().is_empty());
        for (step, ranks) in [(10, 1), (20, 2), (30, 3), (40, 4)] {
            save(&mut store, step, ranks, 40);
        }
        store.record_metric(20, "loss", 1.5).unwrap();
        flip(&store.step_dir(20).join("rank-00001.safetensors"), 300, 1);
        fs::remove_file(store.step_dir(30).join("rank-00002.safetensors")).unwrap();
        fs::remove_file(store.step_dir(40).join(MANIFEST_FILE)).unwrap();
        fs::write(store.step_dir(10).join("metrics.json"), "{").unwrap();

        let entries = store.entries(Depth::Sizes).unwrap();
        let faults = |entries: &[Entry]| entries.iter().map(|e| e.fault().is_some()).collect::<Vec<_>>();
        assert_eq!(faults(&entries), [false, false, true, true]);
        let [ten, twenty, thirty, forty] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((ten.step, ten.path.clone()), (10, store.step_dir(10)));
        assert_eq!(ten.state.as_ref().unwrap().world_size, 1);
        assert!(matches!(ten.metrics, Err(Error::BadMetrics { .. })));
        let files = ["manifest.json", "metrics.json", "rank-00000.safetensors", "rank-00001.safetensors"];
        let bytes: u64 = files.map(|name| twenty.path.join(name).metadata().unwrap().len()).iter().sum();
        assert_eq!(twenty.bytes, bytes);
        assert_eq!(twenty.metrics.as_ref().unwrap()["loss"], 1.5);
        assert!(twenty.age.is_some() && forty.age.is_none());
        assert!(matches!(thirty.fault(), Some(Error::MissingShard { .. })));
        assert!(matches!(forty.fault(), Some(Error::MissingManifest { .. })));

        let verified = store.entries(Depth::Contents).unwrap();
        assert_eq!(faults(&verified), [false, true, true, true]);
        assert!(matches!(verified[1].fault(), Some(Error::BadChecksum { .. })));
    }
}
