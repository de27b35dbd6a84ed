//! Finished texts beside the result that is not yet: what an interrupted generation leaves for the next one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use files::{FileLock, LockError};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::record::Record;
use super::requests::Request;
use crate::json_lines::JsonLines;
use crate::run_dir::{RunDirError, replace_file};
use crate::say;

/// The files of finished texts, one of each rank.
#[derive(Debug)]
pub struct Partial {
    output: PathBuf,
    /// All that decides on a text beside its request, in JSON.
    settings: String,
}

/// A finished text, and what it was made of.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    record: Record,
}

impl Partial {
    /// The files beside `output`, for texts that `settings`, in JSON, and the requests decide on.
    pub fn new(output: &Path, settings: &str) -> Self {
        Self { output: output.to_owned(), settings: settings.to_owned() }
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

    /// The finished texts of these requests, whose ids count from 0, in order; they are moved to rank 0's file. A file that holds
    /// anything else is kept under another name, which is said.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn take(&self, requests: &[Request]) -> Result<Vec<Record>, RunDirError> {
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
        Ok(found.into_values().map(|line| line.record).collect())
    }

    /// Adds the texts of these requests that are in a file to those that were found; the result is whether nothing else is in it.
    fn collect(
        &self,
        path: &Path,
        requests: &[Request],
        found: &mut BTreeMap<u64, Line>,
    ) -> Result<bool, RunDirError> {
        let bytes = fs::read(path).map_err(RunDirError::new("read", path))?;
        let mut is_known = true;
        for text in String::from_utf8_lossy(&bytes).split_inclusive('\n') {
            match serde_json::from_str::<Line>(text) {
                Ok(line) if self.is_of(&line, requests) => {
                    found.insert(line.record.id, line);
                }
                // a line that a crash cut off is no line
                Err(_) if !text.ends_with('\n') => {}
                _ => is_known = false,
            }
        }
        Ok(is_known)
    }

    /// Whether a text is one of these requests, made with these settings.
    fn is_of(&self, line: &Line, requests: &[Request]) -> bool {
        let request = requests.get(line.record.id as usize);
        request.is_some_and(|request| self.key(request) == line.key)
    }

    /// This rank's file, to be appended to: rank 0's behind what [`Partial::take`] found, others' from the start.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(&self, rank: usize) -> Result<PartialFile<'_>, RunDirError> {
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

    fn key(&self, request: &Request) -> String {
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
pub fn digest(settings: &str, requests: &[Request]) -> String {
    let mut hash = Xxh3::new();
    hash.update(settings.as_bytes());
    for request in requests {
        hash.update(format!(" {request:?}").as_bytes());
    }
    format!("{:08x}", hash.digest() >> 32)
}

/// A rank's own file.
#[derive(Debug)]
pub struct PartialFile<'a> {
    partial: &'a Partial,
    lines: JsonLines,
}

impl PartialFile<'_> {
    /// Adds a finished text.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append(&mut self, request: &Request, record: &Record) -> Result<(), RunDirError> {
        self.lines.append(&Line { key: self.partial.key(request), record: record.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ilm_model::Prompt;

    fn request(id: u64, token: i64) -> Request {
        let prompt = Prompt { id, tokens: vec![1, token], token_types: vec![0, 2], ..Prompt::default() };
        Request { prompt, infills: false }
    }

    fn record(id: u64) -> Record {
        Record {
            id,
            text: format!("text {id}"),
            text_with_spl_tokens: String::new(),
            ids: vec![1, 2, 3],
            inserted: 1,
            fillings: None,
            history: None,
        }
    }

    #[test]
    fn texts_of_all_ranks_are_found_if_settings_and_request_are_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let partial = |seed: u64| Partial::new(&folder.path().join("texts.jsonl"), &seed.to_string());
        let requests: Vec<Request> = (0..5).map(|id| request(id, 9)).collect();
        let ids = |found: Vec<Record>| found.iter().map(|record| record.id).collect::<Vec<_>>();
        assert!(partial(1).take(&requests).unwrap().is_empty());
        for (rank, id) in [(0, 3), (0, 1), (1, 2), (12, 4)] {
            let partial = partial(1);
            partial.open(rank).unwrap().append(&requests[id], &record(id as u64)).unwrap();
        }
        fs::write(folder.path().join("texts.jsonl.part-3"), "{\"key\":\"00").unwrap();
        fs::write(folder.path().join("texts.jsonl.part-x"), "another's").unwrap();

        let mut others = requests.clone();
        others[2] = request(2, 8);
        others.truncate(4);
        assert_eq!(ids(partial(1).take(&requests).unwrap()), [1, 2, 3, 4]);
        assert_eq!(partial(1).take(&requests).unwrap()[0], record(1));
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
        let requests = [request(0, 9), request(1, 9)];
        let name = digest("1", &requests);
        assert!(name.len() == 8 && name == digest("1", &requests), "{name}");
        let others = [digest("2", &requests), digest("1", &requests[..1]), digest("1", &[request(0, 8)])];
        assert!(!others.contains(&name), "{name} {others:?}");
    }
}
