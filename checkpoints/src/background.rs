//! Saving while training goes on: a copy of the rank's slices is written, and the whole committed, by other threads.
//!
//! All ranks call [`BackgroundWriter::stage`] between two steps and train on when it returns. Once every rank's
//! [`BackgroundWriter::is_busy`] is false, the records of [`BackgroundWriter::wait`] travel to rank 0, which commits with
//! a [`BackgroundCommit`].

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::CheckpointConfig;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::manifest::{RunState, ShardRecord};
use crate::parallel;
use crate::store::{Staging, Store};
use crate::write::{Section, write_shard};

/// Elements that a thread copies at a time: 4 MiB.
const COPIED_AT_ONCE: usize = 1 << 20;

/// How long the parts of a save took on one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveTimings {
    /// Copying the slices, for which training stood still.
    pub stage: Duration,
    /// Writing the shard until it was durable.
    pub write: Duration,
    /// Writing the manifest, renaming, and removing old checkpoints (rank 0).
    pub commit: Duration,
}

impl SaveTimings {
    /// From the beginning to a checkpoint that a crash cannot take away, without waits for other ranks.
    pub fn total(&self) -> Duration {
        self.stage + self.write + self.commit
    }
}

/// A shard that is durable.
#[derive(Debug)]
pub struct Written {
    /// What rank 0 needs to know of it.
    pub record: ShardRecord,
    /// How long copying and writing took; nothing is committed yet.
    pub timings: SaveTimings,
}

/// Writes a rank's shards on a thread of its own, one at a time, from one buffer that is used again.
#[derive(Debug)]
pub struct BackgroundWriter {
    rank: usize,
    /// Empty while the thread has it.
    buffer: Vec<f32>,
    thread: Option<JoinHandle<(Vec<f32>, Result<Written>)>>,
}

impl BackgroundWriter {
    /// The writer of `rank`, with a buffer for `elements`, those of all sections together. The memory is touched here,
    /// so that the first save stops training for no longer than the others.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new(rank: usize, elements: usize) -> Result<Self> {
        let mut buffer = Vec::new();
        enlarge(&mut buffer, elements)?;
        Ok(Self { rank, buffer, thread: None })
    }

    /// Copies the sections and begins to write the copy to the staging directory `dir`; they may change as soon as this
    /// returns.
    ///
    /// # Errors
    /// [`Error::Unsavable`] while a save is still to be waited for, [`Error::NoMemory`], or no thread to be had. What
    /// is wrong with the sections or the disk is the result of [`BackgroundWriter::wait`].
    pub fn stage(&mut self, dir: &Path, sections: &[Section<'_>]) -> Result<Duration> {
        if self.thread.is_some() {
            let what = "the save before this one was not waited for".into();
            return Err(Error::Unsavable { path: dir.into(), what });
        }
        let started = Instant::now();
        let elements = sections.iter().map(|section| section.data.len()).sum();
        enlarge(&mut self.buffer, elements)?;
        copy(sections, &mut self.buffer[..elements]);
        let stage = started.elapsed();

        let buffer = std::mem::take(&mut self.buffer);
        let (rank, dir) = (self.rank, dir.to_path_buf());
        let staged: Vec<_> = sections.iter().map(StagedSection::of).collect();
        let work = move || {
            let started = Instant::now();
            let record = write_shard(&dir, rank, &views(&staged, &buffer));
            let timings = SaveTimings { stage, write: started.elapsed(), commit: Duration::ZERO };
            (buffer, record.map(|record| Written { record, timings }))
        };
        self.thread = Some(start("checkpoint-writer", work)?);
        Ok(stage)
    }

    /// Whether a shard is being written at this moment.
    pub fn is_busy(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the shard that was staged last and takes its record; none if there is no such shard.
    ///
    /// # Errors
    /// As [`write_shard`].
    pub fn wait(&mut self) -> Option<Result<Written>> {
        let (buffer, written) = join(self.thread.take()?);
        self.buffer = buffer;
        Some(written)
    }
}

/// A thread that is still writing is waited for: nobody may remove its directory before.
impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A [`Section`] whose elements lie in the buffer.
struct StagedSection {
    name: String,
    range: Range<usize>,
    elements: usize,
}

impl StagedSection {
    fn of(section: &Section<'_>) -> Self {
        Self { name: section.name.into(), range: section.range.clone(), elements: section.data.len() }
    }
}

/// The sections as they lie in the buffer, one after the other.
fn views<'a>(staged: &'a [StagedSection], buffer: &'a [f32]) -> Vec<Section<'a>> {
    let mut rest = buffer;
    let mut view = |section: &'a StagedSection| {
        let (data, later) = rest.split_at(section.elements);
        rest = later;
        Section { name: &section.name, range: section.range.clone(), data }
    };
    staged.iter().map(&mut view).collect()
}

/// Copies all sections one after the other, on a few threads.
fn copy(sections: &[Section<'_>], mut buffer: &mut [f32]) {
    let mut pieces = Vec::new();
    for section in sections {
        let (part, later) = buffer.split_at_mut(section.data.len());
        buffer = later;
        pieces.extend(section.data.chunks(COPIED_AT_ONCE).zip(part.chunks_mut(COPIED_AT_ONCE)));
    }
    let copied = parallel::for_each(pieces, |(from, to)| {
        to.copy_from_slice(from);
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = copied;
}

fn enlarge(buffer: &mut Vec<f32>, elements: usize) -> Result<()> {
    let more = elements.saturating_sub(buffer.len());
    buffer.try_reserve_exact(more).map_err(|_| Error::NoMemory { mib: (elements / 4).div_ceil(1 << 16) })?;
    buffer.resize(buffer.len() + more, 0.0);
    Ok(())
}

/// All that a commit puts into the manifest, and what is to be kept afterwards.
#[derive(Debug)]
pub struct Commit {
    /// The save that [`Store::begin`] began.
    pub staging: Staging,
    /// Which range of the arena is which parameter.
    pub layout: Layout,
    /// The records of all ranks, in any order.
    pub records: Vec<ShardRecord>,
    /// Where the run stood when the slices were copied.
    pub state: RunState,
    /// What [`Store::prune`] keeps.
    pub config: CheckpointConfig,
}

/// A checkpoint that is committed.
#[derive(Debug)]
pub struct Committed {
    /// Its directory.
    pub dir: PathBuf,
    /// Old checkpoints that were removed for it; none if they could not be looked at.
    pub removed: Vec<PathBuf>,
    /// How long committing and removing took.
    pub took: Duration,
}

/// A commit on a thread of its own; the store is away for so long. If it fails, the staged files are removed.
#[derive(Debug)]
pub struct BackgroundCommit {
    thread: JoinHandle<(Store, Result<Committed>)>,
}

impl BackgroundCommit {
    /// Begins to commit, and to prune after that.
    ///
    /// # Errors
    /// If there is no thread to be had; the store is then closed.
    pub fn start(mut store: Store, commit: Commit) -> Result<Self> {
        let work = move || {
            let committed = commit.run(&mut store);
            (store, committed)
        };
        Ok(Self { thread: start("checkpoint-commit", work)? })
    }

    /// Whether it is still at work.
    pub fn is_busy(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Waits for the end and gives the store back.
    pub fn wait(self) -> (Store, Result<Committed>) {
        join(self.thread)
    }
}

impl Commit {
    /// Commits and prunes at once. A checkpoint that is committed stays so if [`Store::prune`] fails, which is warned of.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn run(self, store: &mut Store) -> Result<Committed> {
        let started = Instant::now();
        let dir = store.commit(self.staging, self.layout, self.records, self.state)?;
        let removed = store.prune(&self.config).unwrap_or_else(|e| {
            tracing::warn!("old checkpoints stay until the next save: {e}");
            Vec::new()
        });
        Ok(Committed { dir, removed, took: started.elapsed() })
    }
}

fn start<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(work).map_err(no_thread)
}

fn no_thread(source: io::Error) -> Error {
    Error::Io { action: "start a thread of", path: std::env::current_exe().unwrap_or_default(), source }
}

/// The result of a thread; its panic goes on here.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
#[path = "background_tests.rs"]
mod tests;
