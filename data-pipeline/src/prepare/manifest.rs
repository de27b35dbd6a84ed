//! `prepare.json` says what the shards of a folder were made of, so that a job goes on only with its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    output::replace_file,
};

/// The content of `prepare.json`: what every split of the folder was made of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest {
    splits: BTreeMap<String, Recipe>,
}

/// What the shards of a split are made of: names and values of settings, in the order in which a difference is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub settings: Vec<(String, String)>,
    /// Name and fingerprint of every input file; its place is the number of its shard.
    pub inputs: Vec<(String, String)>,
}

impl Recipe {
    /// The value of a setting; one that was not made is none.
    fn setting(&self, key: &str) -> &str {
        self.settings.iter().find(|(name, _)| name == key).map_or("none", |(_, value)| value.as_str())
    }
}

impl Manifest {
    fn path(dir: &Path) -> PathBuf {
        dir.join("prepare.json")
    }

    fn read(dir: &Path) -> Result<Self> {
        let path = Self::path(dir);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::Io { action: "read", path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::Setting(format!(
                "'{}' does not say what the shards beside it are ({error}); use another output folder",
                path.display()
            ))
        })
    }

    /// Enters splits into the manifest of a folder, which this job has locked, or finds that they are there already,
    /// made of the same. If one of them is refused, none is entered.
    pub fn enter(dir: &Path, splits: &[&str], recipe: &Recipe) -> Result<()> {
        let mut manifest = Self::read(dir)?;
        let known = manifest.splits.len();
        for &split in splits {
            match manifest.splits.get(split) {
                Some(earlier) if earlier == recipe => continue,
                Some(earlier) => return Err(differs(dir, split, earlier, recipe)),
                None => refuse_strangers(dir, split)?,
            }
            manifest.splits.insert(split.to_owned(), recipe.clone());
        }
        if manifest.splits.len() == known {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        replace_file(&Self::path(dir), text.as_bytes())
    }
}

/// Shards that no manifest speaks of would be read along with the new ones.
fn refuse_strangers(dir: &Path, split: &str) -> Result<()> {
    let unreadable = |source| Error::Io { action: "read", path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&format!("{split}-")) && name.ends_with(".parquet") {
            return Err(Error::Setting(format!(
                "'{}' was not made by this job; use another output folder or take the file away",
                path.display()
            )));
        }
    }
    Ok(())
}

fn differs(dir: &Path, split: &str, earlier: &Recipe, now: &Recipe) -> Error {
    let keys = earlier.settings.iter().chain(&now.settings).map(|(key, _)| key.as_str());
    let settings = keys.map(|key| (key, earlier.setting(key), now.setting(key)));
    let files = earlier.inputs.iter().zip(&now.inputs).take_while(|(before, now)| before.0 == now.0);
    let files = files.map(|(before, now)| (before.0.as_str(), before.1.as_str(), now.1.as_str()));
    let difference = match settings.chain(files).find(|(_, before, now)| before != now) {
        Some((key, before, now)) => format!("{key} = {before}, and now it is {now}"),
        None => "other input files".to_owned(),
    };
    Error::Setting(format!(
        "the {split} shards in '{}' were made with {difference}; use another output folder",
        dir.display()
    ))
}
