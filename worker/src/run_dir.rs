//! The folder of one run: `config.toml`, `metrics.jsonl`, `digest.jsonl`, `checkpoints/`, `evaluations/`, `generations/`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file or folder of a run cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct RunDirError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RunDirError {
    /// What `action` on `path` gives for an error of the operating system.
    pub(crate) fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Names the folder; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Every resolved value of the run's configuration, as the run was last started.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// What the training data was made of, as the run was last started.
    pub fn dataset(&self) -> PathBuf {
        self.root.join("dataset.json")
    }

    /// Footers of a split's files, kept from one start to the next.
    pub fn index(&self, split: &str) -> PathBuf {
        self.root.join("index").join(format!("{split}.idx"))
    }

    /// One JSON line per step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// One JSON line per validation during training.
    pub fn validation(&self) -> PathBuf {
        self.root.join("validation.jsonl")
    }

    /// One JSON line per step, by which two runs are compared.
    pub fn digest(&self) -> PathBuf {
        self.root.join("digest.jsonl")
    }

    /// One JSON line per step that left the parameters as they were.
    pub fn skipped(&self) -> PathBuf {
        self.root.join("skipped.jsonl")
    }

    /// The batch of the step that a run ended at because it was not finite.
    pub fn dump(&self, step: u64) -> PathBuf {
        self.root.join("dumps").join(format!("step-{step:09}"))
    }

    /// Results of evaluations.
    pub fn evaluations(&self) -> PathBuf {
        self.root.join("evaluations")
    }

    /// Generated texts.
    pub fn generations(&self) -> PathBuf {
        self.root.join("generations")
    }

    /// Creates the folder.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(&self) -> Result<(), RunDirError> {
        fs::create_dir_all(&self.root).map_err(RunDirError::new("create run directory", &self.root))
    }

    /// Moves what an earlier run left into `previous-N/`, so that a fresh start loses nothing.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, RunDirError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RunDirError::new("read", &self.root)(error)),
        };
        let old: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| !stays(&name.to_string_lossy())))
            .collect();
        if old.is_empty() {
            return Ok(None);
        }
        let mut number = 1;
        while self.root.join(format!("previous-{number}")).exists() {
            number += 1;
        }
        let aside = self.root.join(format!("previous-{number}"));
        fs::create_dir(&aside).map_err(RunDirError::new("create", &aside))?;
        for path in old {
            if let Some(name) = path.file_name() {
                fs::rename(&path, aside.join(name)).map_err(RunDirError::new("move", &path))?;
            }
        }
        Ok(Some(aside))
    }
}

/// What a fresh start leaves in its place: earlier runs, and what the launcher and this start have opened already.
fn stays(name: &str) -> bool {
    name.starts_with("previous-") || ["logs", "heartbeats", "launcher.json", "index"].contains(&name)
}

/// Whether there is something that no file may take the place of: a folder, a device, a pipe.
pub fn is_taken(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file())
}

/// Writes `content` to `path` so that a reader sees the old or the new file, never a part. A link stays, and leads to the new file.
///
/// # Errors
/// If the disk refuses, or something else than a file is there.
pub fn replace_file(path: &Path, content: &str) -> Result<(), RunDirError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(RunDirError::new("create", folder))?;
    }
    if is_taken(path) {
        let other = io::Error::other("it is a folder, a device or a pipe, not a file");
        return Err(RunDirError::new("write", path)(other));
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut temporary = target.clone().into_os_string();
    temporary.push(".tmp");
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        // What is said is why it could not be written; a part of it is of no use.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(RunDirError::new("write", path))
}

/// A file of JSON lines, open for appending.
#[derive(Debug)]
pub struct JsonLines {
    file: fs::File,
    path: PathBuf,
    /// The largest step of a line that was there when it was opened.
    newest: Option<u64>,
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
        Ok(Self { newest, ..Self::append_to(path)? })
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
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: file.map_err(RunDirError::new("open", &path))?, path, newest: None })
    }

    /// Appends one record as one line.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append(&mut self, record: &impl serde::Serialize) -> Result<(), RunDirError> {
        let line = serde_json::to_string(record).map_err(io::Error::from);
        line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()))
            .map_err(RunDirError::new("append to", &self.path))
    }
}

/// The step of a metrics line; none for a line that a crash cut off.
fn step_of(line: &str) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("step")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_removes_later_and_cut_off_lines() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        fs::write(run_dir.metrics(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut metrics = JsonLines::open(run_dir.metrics(), 2).unwrap();
        metrics.append(&serde_json::json!({"step": 3, "again": true})).unwrap();
        let text = fs::read_to_string(run_dir.metrics()).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"again\":true,\"step\":3}\n");
    }

    #[test]
    fn a_line_that_is_no_text_is_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        fs::write(run_dir.metrics(), b"{\"step\":1}\n{\"step\":\xff\xfe}\n\0\0\n{\"step\":2}\n").unwrap();
        JsonLines::open(run_dir.metrics(), 2).unwrap();
        assert_eq!(fs::read_to_string(run_dir.metrics()).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn a_fresh_start_keeps_the_old_run() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        assert_eq!(run_dir.set_aside().unwrap(), None);
        for number in 1..=2 {
            fs::write(run_dir.metrics(), format!("run {number}")).unwrap();
            let aside = run_dir.set_aside().unwrap().unwrap();
            assert_eq!(aside, folder.path().join(format!("previous-{number}")));
            assert_eq!(fs::read_to_string(aside.join("metrics.jsonl")).unwrap(), format!("run {number}"));
        }
        assert!(!run_dir.metrics().exists());
    }

    #[test]
    fn only_a_file_is_replaced_and_only_by_way_of_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("texts.tmp"), "another's").unwrap();
        fs::write(at("texts.jsonl"), "old").unwrap();
        std::os::unix::fs::symlink(at("texts.jsonl"), at("link.jsonl")).unwrap();
        replace_file(&at("link.jsonl"), "new").unwrap();
        assert!(at("link.jsonl").is_symlink());
        assert_eq!(fs::read_to_string(at("texts.jsonl")).unwrap(), "new");
        assert_eq!(fs::read_to_string(at("texts.tmp")).unwrap(), "another's");

        fs::create_dir(at("folder")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["folder", "pipe"] {
            let sentence = replace_file(&at(name), "new").unwrap_err().to_string();
            assert!(sentence.contains(name) && sentence.contains("not a file"), "{sentence}");
            assert!(is_taken(&at(name)));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn a_path_that_cannot_be_a_folder_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let run_dir = RunDir::new(file.path().join("run"));
        let message = run_dir.create().unwrap_err().to_string();
        assert!(message.contains("cannot create run directory"), "{message}");
        assert!(message.contains(&file.path().display().to_string()), "{message}");
    }
}
