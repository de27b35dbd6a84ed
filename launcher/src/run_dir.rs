//! What a run directory shows from outside: its checkpoints.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// A checkpoint that was written to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Finished optimizer steps.
    pub step: u64,
    /// When its manifest, which is written last, was.
    pub saved: SystemTime,
}

/// The checkpoint of the highest step in `RUN/checkpoints`; its sums are not checked.
pub fn newest_checkpoint(run_dir: &Path) -> Option<Checkpoint> {
    let entries = fs::read_dir(run_dir.join("checkpoints")).ok()?;
    let checkpoint = |entry: fs::DirEntry| {
        let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
        let manifest = entry.path().join("manifest.json");
        Some(Checkpoint { step, saved: manifest.metadata().ok()?.modified().ok()? })
    };
    entries.filter_map(|entry| checkpoint(entry.ok()?)).max_by_key(|checkpoint| checkpoint.step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_checkpoints_count() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(newest_checkpoint(run.path()), None);
        for name in ["step-000000090", "step-000000100", ".tmp-step-000000300", "step-x"] {
            let folder = run.path().join("checkpoints").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("manifest.json"), "{}").unwrap();
        }
        fs::create_dir(run.path().join("checkpoints/step-000000200")).unwrap();
        assert_eq!(newest_checkpoint(run.path()).map(|checkpoint| checkpoint.step), Some(100));
    }
}
