//! What a run directory shows from outside: its checkpoints, its latest metrics, how far it is to go.

use serde::Deserialize;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

/// Bytes at the end of `metrics.jsonl` that are looked at; a line has a few hundred.
const TAIL: u64 = 16 << 10;

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

/// The latest numbers of a training run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Finished optimizer steps.
    pub step: u64,
    /// Loss of that step; `None` if it was not a finite number.
    pub loss: Option<f64>,
    /// Examples per second over the last lines of the file.
    pub examples_per_s: Option<f64>,
    /// When they were written.
    pub written: SystemTime,
}

#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    examples_per_s: Option<f64>,
    step_s: Option<f64>,
}

/// The end of `RUN/metrics.jsonl`; a last line that is being written is passed over.
pub fn latest_metrics(run_dir: &Path) -> Option<Metrics> {
    let mut file = File::open(run_dir.join("metrics.jsonl")).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let written = fs::metadata(run_dir.join("metrics.jsonl")).ok()?.modified().ok()?;
    let lines: Vec<Line> =
        tail.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let last = lines.last()?;
    // The mean of rates is not the rate of the whole: a slow step takes more of the time.
    let (mut examples, mut seconds) = (0.0, 0.0);
    for line in &lines {
        if let (Some(rate), Some(step_s)) = (line.examples_per_s, line.step_s) {
            examples += rate * step_s;
            seconds += step_s;
        }
    }
    let examples_per_s = (seconds > 0.0).then(|| examples / seconds);
    Some(Metrics { step: last.step, loss: last.loss, examples_per_s, written })
}

/// `trainer.max_steps` of `RUN/config.toml`.
pub fn max_steps(run_dir: &Path) -> Option<u64> {
    let config: toml::Table = fs::read_to_string(run_dir.join("config.toml")).ok()?.parse().ok()?;
    u64::try_from(config.get("trainer")?.get("max_steps")?.as_integer()?).ok()
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

    #[test]
    fn metrics_are_those_of_the_last_whole_lines() {
        let run = tempfile::tempdir().unwrap();
        let latest = |text: &str| {
            fs::write(run.path().join("metrics.jsonl"), text).unwrap();
            latest_metrics(run.path()).map(|found| (found.step, found.loss, found.examples_per_s))
        };
        assert_eq!(latest_metrics(run.path()), None);
        assert_eq!(latest(""), None);
        assert_eq!(latest("{\"step\":1,\"lo"), None);
        let line = |step, rate, step_s| {
            format!(
                "{{\"step\":{step},\"loss\":2.5,\"examples_per_s\":{rate},\"step_s\":{step_s},\"lr\":1}}\n"
            )
        };
        // Ten examples in one second and ten in four.
        let two = line(1, 10.0, 1.0) + &line(2, 2.5, 4.0);
        assert_eq!(latest(&(two.clone() + "{\"step\":3,")), Some((2, Some(2.5), Some(4.0))));
        assert_eq!(latest(&(two + "{\"step\":3,\"loss\":null}\n")), Some((3, None, Some(4.0))));
        let long: String = (1..=10_000).map(|step| line(step, 8.0, 0.5)).collect();
        assert_eq!(latest(&long), Some((10_000, Some(2.5), Some(8.0))));
    }

    #[test]
    fn the_last_step_is_read_from_the_configuration() {
        let run = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            fs::write(run.path().join("config.toml"), text).unwrap();
            max_steps(run.path())
        };
        assert_eq!(max_steps(run.path()), None);
        assert_eq!(read("seed = 1   # default\ntrainer.max_steps = 80   # override\n"), Some(80));
        assert_eq!(read("[trainer]\nmax_steps = \"\"\n"), None);
        assert_eq!(read("trainer.max_ste"), None);
    }
}
