//! The folder of one run: `config.toml`, `metrics.jsonl`, `digest.jsonl`, `checkpoints/`, `evaluations/`, `generations/`.

use std::fs;
use std::io;
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

/// Writes `content` to `path` so that a reader sees the old or the new file, never a part; its folder is created if needed.
///
/// # Errors
/// If the disk refuses, or something else than a file is there.
pub fn replace_file(path: &Path, content: &str) -> Result<(), RunDirError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(RunDirError::new("create", folder))?;
    }
    files::replace(path, content.as_bytes()).map_err(RunDirError::new("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_path_that_cannot_be_a_folder_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let run_dir = RunDir::new(file.path().join("run"));
        let message = run_dir.create().unwrap_err().to_string();
        assert!(message.contains("cannot create run directory"), "{message}");
        assert!(message.contains(&file.path().display().to_string()), "{message}");
    }
}
