//! Finished texts beside the result that is not yet: what a job that is interrupted leaves for the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::bail;
use files::{FileLock, LockError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::comm::Collectives;
use crate::json_lines::JsonLines;
use crate::run_dir::{RunDirError, replace_file};
use crate::say;

/// The files of finished texts, one of each rank. A text is `R`, and what it was made of is anything whose `Debug` form tells it from
/// others; its number is its place among the requests.
#[derive(Debug)]
pub struct Partial<R> {
    output: PathBuf,
    /// All that decides on a text beside its request, in JSON.
    settings: String,
    records: PhantomData<R>,
}

/// A finished text, and what it was made of.
#[derive(Debug, Serialize, Deserialize)]
struct Line<R> {
    id: u64,
    key: String,
    record: R,
}

impl<R: Serialize + DeserializeOwned> Partial<R> {
    /// The files beside `output`, for texts that `settings`, in JSON, and the requests decide on.
    pub fn new(output: &Path, settings: &str) -> Self {
        Self { output: output.to_owned(), settings: settings.to_owned(), records: PhantomData }
    }

    /// Makes this process the one that writes the output and the files beside it.
    ///
    /// # Errors
    /// If another one does, or the disk refuses.
    pub fn lock(&self) -> Result<FileLock, RunDirError> {
        let path = self.output.with_file_name(format!("{}lock", self.name()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(RunDirError::new("create", folder))?;
        }
        FileLock::take_for_a_while(path).map_err(|error| {
            let why = match error {
                LockError::Held { holder } => io::Error::other(format!(
                    "another process is writing it (process {holder}); wait for its end, or name another --output"
                )),
                LockError::Io(source) => source,
            };
            RunDirError::new("write", &self.output)(why)
        })
    }

    /// The finished texts of these requests by their numbers, in order; they are moved to rank 0's file. A file that holds
    /// anything else is kept under another name, which is said.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn take(&self, requests: &[impl Debug]) -> Result<BTreeMap<u64, R>, RunDirError> {
        let (mut found, mut known, mut strange) = (BTreeMap::new(), Vec::new(), Vec::new());
        for path in self.files()? {
            let files = if self.collect(&path, requests, &mut found)? { &mut known } else { &mut strange };
            files.push(path);
        }
        for path in &strange {
            set_aside(path)?;
        }
        let own = self.path(0);
        let lines: Result<Vec<String>, _> = found.values().map(serde_json::to_string).collect();
        let lines = lines.map_err(|error| RunDirError::new("write", &own)(error.into()))?;
        replace_file(&own, &lines.iter().flat_map(|line| [line, "\n"]).collect::<String>())?;
        for path in known.iter().filter(|path| **path != own) {
            fs::remove_file(path).map_err(RunDirError::new("remove", path))?;
        }
        Ok(found.into_iter().map(|(id, line)| (id, line.record)).collect())
    }

    /// Adds the texts of these requests that are in a file to those that were found; the result is whether nothing else is in it.
    fn collect(
        &self,
        path: &Path,
        requests: &[impl Debug],
        found: &mut BTreeMap<u64, Line<R>>,
    ) -> Result<bool, RunDirError> {
        let bytes = fs::read(path).map_err(RunDirError::new("read", path))?;
        let mut is_known = true;
        for text in String::from_utf8_lossy(&bytes).split_inclusive('\n') {
            match serde_json::from_str::<Line<R>>(text) {
                Ok(line) if self.is_of(&line, requests) => {
                    found.insert(line.id, line);
                }
                // a line that a crash cut off is no line
                Err(_) if !text.ends_with('\n') => {}
                _ => is_known = false,
            }
        }
        Ok(is_known)
    }

    /// Whether a text is one of these requests, made with these settings.
    fn is_of(&self, line: &Line<R>, requests: &[impl Debug]) -> bool {
        let request = requests.get(line.id as usize);
        request.is_some_and(|request| self.key(request) == line.key)
    }

    /// This rank's file, to be appended to: rank 0's behind what [`Partial::take`] found, others' from the start.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(&self, rank: usize) -> Result<PartialFile<'_, R>, RunDirError> {
        let path = self.path(rank);
        if rank > 0 {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(RunDirError::new("create", folder))?;
            fs::write(&path, "").map_err(RunDirError::new("write", &path))?;
        }
        Ok(PartialFile { partial: self, lines: JsonLines::append_to(path)? })
    }

    /// Removes this rank's file, once the result is there.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn remove(&self, rank: usize) -> Result<(), RunDirError> {
        let path = self.path(rank);
        fs::remove_file(&path).map_err(RunDirError::new("remove", &path))
    }

    fn key(&self, request: &impl Debug) -> String {
        format!("{:016x}", xxh3_64(format!("{} {request:?}", self.settings).as_bytes()))
    }

    /// The common start of the files' names.
    fn name(&self) -> String {
        let name = self.output.file_name().unwrap_or_default();
        format!("{}.part-", name.to_string_lossy())
    }

    fn path(&self, rank: usize) -> PathBuf {
        self.output.with_file_name(format!("{}{rank}", self.name()))
    }

    /// The files that are there.
    fn files(&self) -> Result<Vec<PathBuf>, RunDirError> {
        let own = self.path(0);
        let folder = own.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunDirError::new("read", folder)(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry.map_err(RunDirError::new("read", folder))?.file_name();
            let rank = name.to_str().and_then(|name| name.strip_prefix(&self.name()));
            if rank.is_some_and(|rank| rank.parse::<usize>().is_ok()) {
                files.push(self.output.with_file_name(&name));
            }
        }
        Ok(files)
    }
}

/// Refuses what texts cannot be written to, before there are any.
///
/// # Errors
/// If it is there and no file, or names none.
pub fn check_output(output: &Path) -> anyhow::Result<()> {
    if output.file_name().is_none() || files::is_taken(output) {
        bail!("--output {} is a folder, a device or a pipe; name a file to write", output.display());
    }
    Ok(())
}

/// The numbers of the texts that rank 0 has from before, on all ranks.
///
/// # Errors
/// If the ranks cannot speak to each other.
pub fn share_done<'a>(
    comm: &mut dyn Collectives,
    found: impl Iterator<Item = &'a u64>,
) -> anyhow::Result<BTreeSet<u64>> {
    let found = comm.all_gather("texts of before", &serde_json::to_vec(&found.collect::<Vec<_>>())?)?;
    let done: BTreeSet<u64> =
        found.first().map_or(Ok(BTreeSet::new()), |found| serde_json::from_slice(found))?;
    if comm.rank() == 0 && !done.is_empty() {
        say!("{} texts are there from before", done.len());
    }
    Ok(done)
}

/// Moves a file to a free name beside it.
fn set_aside(path: &Path) -> Result<(), RunDirError> {
    let named = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".old-{number}"));
        PathBuf::from(name)
    };
    let mut number = 1;
    while named(number).exists() {
        number += 1;
    }
    let aside = named(number);
    fs::rename(path, &aside).map_err(RunDirError::new("move", path))?;
    say!("{} has texts of other requests or settings; it is kept as {}", path.display(), aside.display());
    Ok(())
}

/// A short name of these requests and settings, which others do not have.
pub fn digest(settings: &str, requests: &[impl Debug]) -> String {
    let mut hash = Xxh3::new();
    hash.update(settings.as_bytes());
    for request in requests {
        hash.update(format!(" {request:?}").as_bytes());
    }
    format!("{:08x}", hash.digest() >> 32)
}

/// A rank's own file.
#[derive(Debug)]
pub struct PartialFile<'a, R> {
    partial: &'a Partial<R>,
    lines: JsonLines,
}

impl<R: Serialize + DeserializeOwned> PartialFile<'_, R> {
    /// Adds the finished text of the request of that number.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append(&mut self, id: u64, request: &impl Debug, record: &R) -> Result<(), RunDirError> {
        self.lines.append(&Line { id, key: self.partial.key(request), record })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_all_ranks_are_found_if_settings_and_request_are_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let partial =
            |seed: u64| Partial::<String>::new(&folder.path().join("texts.jsonl"), &seed.to_string());
        let requests = ["a", "b", "c", "d", "e"];
        let ids = |found: BTreeMap<u64, String>| found.into_keys().collect::<Vec<_>>();
        let text = |id: u64| format!("text {id}");
        assert!(partial(1).take(&requests).unwrap().is_empty());
        for (rank, id) in [(0, 3), (0, 1), (1, 2), (12, 4)] {
            let partial = partial(1);
            partial.open(rank).unwrap().append(id, &requests[id as usize], &text(id)).unwrap();
        }
        fs::write(folder.path().join("texts.jsonl.part-3"), "{\"key\":\"00").unwrap();
        fs::write(folder.path().join("texts.jsonl.part-x"), "another's").unwrap();

        let others = ["a", "b", "other", "d"];
        assert_eq!(ids(partial(1).take(&requests).unwrap()), [1, 2, 3, 4]);
        assert_eq!(partial(1).take(&requests).unwrap()[&1], text(1));
        assert_eq!(partial(1).files().unwrap(), [partial(1).path(0)]);
        assert_eq!(ids(partial(1).take(&others).unwrap()), [1, 3]);
        assert!(partial(2).take(&requests).unwrap().is_empty());
        partial(2).remove(0).unwrap();
        assert!(partial(2).files().unwrap().is_empty() && folder.path().join("texts.jsonl.part-x").exists());

        // what was of other requests, and then of other settings, is still there
        for (number, expected) in [(2, &[1, 3][..]), (1, &[1, 2, 3, 4])] {
            let kept = folder.path().join(format!("texts.jsonl.part-0.old-{number}"));
            fs::rename(kept, partial(1).path(0)).unwrap();
            assert_eq!(ids(partial(1).take(&requests).unwrap()), expected);
        }
    }

    #[test]
    fn requests_and_settings_have_names_of_their_own() {
        let requests = ["a", "b"];
        let name = digest("1", &requests);
        assert!(name.len() == 8 && name == digest("1", &requests), "{name}");
        let others = [digest("2", &requests), digest("1", &requests[..1]), digest("1", &["c"])];
        assert!(!others.contains(&name), "{name} {others:?}");
    }
}
