//! Figures recorded with a checkpoint, in a small file beside its manifest, which is never written twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{self, read_bounded};
use crate::error::{Error, Result};
use crate::manifest::{seal, unseal};

const METRICS_FILE: &str = "metrics.json";
const WRITING: &str = ".metrics.json.tmp";
const FORMAT: &str = "ilm-checkpoint-metrics";
const VERSION: u64 = 1;
/// A larger file is none of ours.
const MAX_BYTES: u64 = 1 << 20;

/// Figures by name, all finite.
pub type Metrics = BTreeMap<String, f64>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    format: String,
    version: u64,
    metrics: Metrics,
}

/// The figures of the checkpoint in `dir`; none if none were recorded.
pub(crate) fn read(dir: &Path) -> Result<Metrics> {
    let path = dir.join(METRICS_FILE);
    let bytes = match read_bounded(&path, MAX_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Metrics::new());
        }
        read => read?,
    };
    bytes.and_then(|bytes| parse(&bytes)).map_err(|what| Error::BadMetrics { path, what })
}

fn parse(bytes: &[u8]) -> Result<Metrics, String> {
    let body = unseal(bytes)?;
    let body: Body = serde_json::from_slice(&[body, b"\n}"].concat()).map_err(|e| e.to_string())?;
    if body.format != FORMAT || body.version != VERSION {
        return Err(format!("it is '{}' of version {}", body.format, body.version));
    }
    Ok(body.metrics)
}

/// Adds a figure to those of the checkpoint in `dir`: the old file or the new one is there at any time. A damaged file
/// is replaced.
pub(crate) fn record(dir: &Path, name: &str, value: f64) -> Result<PathBuf> {
    let (path, writing) = (dir.join(METRICS_FILE), dir.join(WRITING));
    let unsavable = |what| Error::Unsavable { path: path.clone(), what };
    if !value.is_finite() {
        return Err(unsavable(format!("the figure '{name}' is {value}")));
    }
    let mut metrics = read(dir).or_else(|e| match e {
        Error::BadMetrics { .. } => Ok(Metrics::new()),
        other => Err(other),
    })?;
    metrics.insert(name.into(), value);
    let body = Body { format: FORMAT.into(), version: VERSION, metrics };
    let text = serde_json::to_string_pretty(&body).map_err(|e| unsavable(e.to_string()))?;
    let text = seal(text.strip_suffix("\n}").unwrap_or(&text).into());
    disk::remove(&writing)?;
    disk::write_new(&writing, text.as_bytes())?;
    disk::rename(&writing, &path)?;
    disk::sync_dir(dir)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_recorded_is_read_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Metrics::new());
        record(dir.path(), "loss", 0.1 + 0.2).unwrap();
        record(dir.path(), "exact \"match\"", f64::MIN_POSITIVE).unwrap();
        let path = record(dir.path(), "loss", 1.0 / 3.0).unwrap();
        let expected = [("exact \"match\"", f64::MIN_POSITIVE), ("loss", 1.0 / 3.0)];
        let expected: Metrics = expected.map(|(name, value)| (name.to_string(), value)).into();
        assert_eq!(read(dir.path()).unwrap(), expected);
        let _: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed_and_the_next_figure_is_recorded_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = record(dir.path(), "loss", 1.5).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut flipped = good.clone();
                flipped[at] ^= 1 << bit;
                assert!(parse(&flipped).is_err(), "byte {at} bit {bit}");
            }
            assert!(parse(&good[..at]).is_err(), "cut at {at}");
        }
        fs::write(&path, &good[1..]).unwrap();
        assert!(matches!(read(dir.path()), Err(Error::BadMetrics { .. })));
        record(dir.path(), "loss", 2.5).unwrap();
        assert_eq!(read(dir.path()).unwrap()["loss"], 2.5);
    }

    #[test]
    fn a_figure_that_is_no_number_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for value in [f64::NAN, f64::INFINITY] {
            assert!(matches!(record(dir.path(), "loss", value), Err(Error::Unsavable { .. })));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
