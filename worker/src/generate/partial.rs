//! Finished texts beside the result that is not yet: what an interrupted generation leaves for the next one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::record::Record;
use super::requests::Request;
use crate::run_dir::{JsonLines, RunDirError, replace_file};

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
    /// The files beside `output`, for texts that `settings` and the requests decide on.
    ///
    /// # Errors
    /// Settings that are not JSON.
    pub fn new(output: &Path, settings: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self { output: output.to_owned(), settings: serde_json::to_string(settings)? })
    }

    /// The finished texts of these requests, whose ids count from 0, in order; they are moved to rank 0's file, and what is of other
    /// settings is lost.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn take(&self, requests: &[Request]) -> Result<Vec<Record>, RunDirError> {
        let mut found = BTreeMap::new();
        let files = self.files()?;
        for path in &files {
            let bytes = fs::read(path).map_err(RunDirError::new("read", path))?;
            // a line that a crash cut off is no line
            let lines = String::from_utf8_lossy(&bytes);
            for line in lines.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
                let request = requests.get(line.record.id as usize);
                if request.is_some_and(|request| self.key(request) == line.key) {
                    found.insert(line.record.id, line);
                }
            }
        }
        let own = self.path(0);
        let lines: Result<Vec<String>, _> = found.values().map(serde_json::to_string).collect();
        let lines = lines.map_err(|error| RunDirError::new("write", &own)(error.into()))?;
        replace_file(&own, &lines.iter().flat_map(|line| [line, "\n"]).collect::<String>())?;
        for path in files.iter().filter(|path| **path != own) {
            fs::remove_file(path).map_err(RunDirError::new("remove", path))?;
        }
        Ok(found.into_values().map(|line| line.record).collect())
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
        let partial = |seed: u64| Partial::new(&folder.path().join("texts.jsonl"), &seed).unwrap();
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
    }
}
