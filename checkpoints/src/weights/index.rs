//! The index of a state dict that was cut into several files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::WeightsError;
use super::header::TensorInfo;
use crate::disk::read_bounded;
use crate::error::Result;

/// As for a header, which lists the same keys.
const MAX_INDEX_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Contents {
    weight_map: BTreeMap<String, String>,
}

/// The keys that an index places in each file beside it.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<PathBuf, BTreeSet<String>>> {
    let bad = |what| WeightsError::BadIndex { path: path.into(), what };
    let bytes = read_bounded(path, MAX_INDEX_BYTES)?.map_err(bad)?;
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let mut files: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (key, name) in contents.weight_map {
        // Weights come from strangers: nothing outside their folder is opened.
        let mut components = Path::new(&name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            return Err(bad(format!("'{name}' is not the name of a file beside it")).into());
        }
        files.entry(path.with_file_name(name)).or_default().insert(key);
    }
    if files.is_empty() {
        return Err(bad("its weight_map is empty".into()).into());
    }
    Ok(files)
}

/// Checks that a file has exactly the tensors that the index places in it.
pub(crate) fn confirm(
    index: &Path,
    file: &Path,
    mut placed: BTreeSet<String>,
    tensors: &[(String, TensorInfo)],
) -> Result<(), WeightsError> {
    let surplus = tensors.iter().map(|(key, _)| key).find(|key| !placed.remove(*key));
    let what = match (surplus, placed.first()) {
        (Some(key), _) => format!("it does not place '{key}' in {}, which has it", file.display()),
        (None, Some(key)) => format!("it places '{key}' in {}, which lacks it", file.display()),
        (None, None) => return Ok(()),
    };
    Err(WeightsError::BadIndex { path: index.into(), what })
}
