//! Files of JSON lines: a record is a line, and never part of one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::run_dir::{RunDirError, replace_file};
use crate::telemetry;

/// So many lines may wait for a disk that refuses them: those of hours of steps, and at most a few hundred MiB.
const MOST_WAITING: usize = 50_000;

/// A file of JSON lines, open for appending by this process alone.
#[derive(Debug)]
pub struct JsonLines {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines in the file.
    len: u64,
    /// The largest step of a line that was there when it was opened.
    newest: Option<u64>,
    /// Lines that the disk has refused so far, the oldest first.
    waiting: VecDeque<Vec<u8>>,
}

impl JsonLines {
    /// Opens a file whose lines each have a `step`, and removes those of steps after `resume_step`, which will be run again.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(path: PathBuf, resume_step: u64) -> Result<Self, RunDirError> {
        let old = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RunDirError::new("read", &path)(error)),
        };
        let is_past = |line: &&str| step_of(line).is_some_and(|step| step <= resume_step);
        // a line that a crash has damaged is no line
        let text = old.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
        let kept: String = text.filter(is_past).flat_map(|line| [line, "\n"]).collect();
        if kept.as_bytes() != old {
            replace_file(&path, &kept)?;
        }
        let newest = kept.lines().filter_map(step_of).max();
        let mut lines = Self::append_to(path)?;
        lines.newest = newest;
        Ok(lines)
    }

    /// Whether a line of that step, or of a later one, was kept when the file was opened.
    pub fn reaches(&self, step: u64) -> bool {
        self.newest.is_some_and(|newest| newest >= step)
    }

    /// Opens the file to append to it as it is.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append_to(path: PathBuf) -> Result<Self, RunDirError> {
        let opened = File::options().create(true).append(true).open(&path);
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (len, file) = opened.map_err(RunDirError::new("open", &path))?;
        Ok(Self { file, path, len, newest: None, waiting: VecDeque::new() })
    }

    /// Appends one record as one line.
    ///
    /// # Errors
    /// If the disk refuses; the file is then as before.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), RunDirError> {
        let line = line_of(record);
        line.and_then(|line| self.write(&line)).map_err(RunDirError::new("append to", &self.path))
    }

    /// Appends one record as one line, now or later: a line that the disk refuses is kept, is written before the next ones, and costs
    /// a run no more than a warning.
    pub fn note(&mut self, record: &impl Serialize) {
        let was_refused = !self.waiting.is_empty();
        let noted = line_of(record).and_then(|line| {
            self.waiting.push_back(line);
            self.catch_up()
        });
        match noted {
            Err(error) if !was_refused => telemetry::warn(&format!(
                "{}; the run goes on, and its lines are written once that works again",
                RunDirError::new("append to", &self.path)(error)
            )),
            Ok(()) if was_refused => telemetry::warn(&format!("{} is written again", self.path.display())),
            _ => {}
        }
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
        }
    }

    /// Writes what waits.
    fn catch_up(&mut self) -> io::Result<()> {
        while let Some(line) = self.waiting.pop_front() {
            self.write(&line).inspect_err(|_| self.waiting.push_front(line))?;
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(line);
        match written {
            Ok(()) => self.len += line.len() as u64,
            // The part that found room goes: it would be the beginning of the next line.
            Err(_) => self.file.set_len(self.len)?,
        }
        written
    }
}

impl Drop for JsonLines {
    fn drop(&mut self) {
        if let Err(error) = self.catch_up() {
            let error = RunDirError::new("append to", &self.path)(error);
            telemetry::warn(&format!("{error}; its last {} lines are lost", self.waiting.len()));
        }
    }
}

fn line_of(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// The step of a line; none for one that a crash cut off.
fn step_of(line: &str) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("step")?.as_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn resuming_removes_later_and_cut_off_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut metrics = JsonLines::open(path.clone(), 2).unwrap();
        metrics.append(&json!({"step": 3, "again": true})).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"again\":true,\"step\":3}\n");
    }

    #[test]
    fn a_line_that_is_no_text_is_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, b"{\"step\":1}\n{\"step\":\xff\xfe}\n\0\0\n{\"step\":2}\n").unwrap();
        JsonLines::open(path.clone(), 2).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn what_a_full_disk_refuses_is_written_later_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::append_to(path.clone()).unwrap();
        lines.note(&json!({"step": 1}));
        let disk = std::mem::replace(&mut lines.file, File::options().write(true).open("/dev/full").unwrap());
        lines.note(&json!({"step": 2}));
        lines.note(&json!({"step": 3}));
        lines.append(&json!({"step": 9})).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n");
        lines.file = disk;
        lines.note(&json!({"step": 4}));
        let expected: String = (1..=4).map(|step| format!("{{\"step\":{step}}}\n")).collect();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert!(lines.waiting.is_empty());

        // The last ones have nobody behind them.
        let disk = std::mem::replace(&mut lines.file, File::options().write(true).open("/dev/full").unwrap());
        lines.note(&json!({"step": 5}));
        lines.file = disk;
        drop(lines);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected + "{\"step\":5}\n");
    }
}
