//! Where configuration files come from: the user's folder wins over the embedded ones, file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rust_embed::RustEmbed;

use super::error::ConfigError;
use super::schema::nearest;

/// The folder `configs/` as it was when the program was built.
#[derive(RustEmbed)]
#[folder = "../configs"]
struct Shipped;

/// A parsed file.
pub(super) struct File {
    /// The path a reader knows it by.
    pub origin: String,
    /// Its contents.
    pub table: toml::Table,
}

/// All files, by group and name.
pub(super) struct Library {
    files: BTreeMap<(String, String), Location>,
}

/// Where one file lies.
enum Location {
    Embedded(String),
    OnDisk(PathBuf),
}

impl Library {
    /// Lists the embedded files and those of `config_dir` (`GROUP/NAME.toml`).
    pub fn open(config_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let mut files = BTreeMap::new();
        for path in Shipped::iter() {
            if let Some(key) = group_and_name(Path::new(path.as_ref())) {
                files.insert(key, Location::Embedded(path.into_owned()));
            }
        }
        if let Some(dir) = config_dir {
            for group in read_dir(dir)?.into_iter().filter(|path| path.is_dir()) {
                for path in read_dir(&group)? {
                    if let Some(key) = path.strip_prefix(dir).ok().and_then(group_and_name) {
                        files.insert(key, Location::OnDisk(path));
                    }
                }
            }
        }
        Ok(Self { files })
    }

    /// Reads and parses one file; an unknown name lists the ones there are.
    pub fn read(&self, group: &str, name: &str) -> Result<File, ConfigError> {
        let Some(location) = self.files.get(&(group.to_owned(), name.to_owned())) else {
            return Err(self.unknown(group, name));
        };
        match location {
            Location::Embedded(path) => {
                let gone = || read_error(Path::new(path), io::ErrorKind::NotFound.into());
                parse(format!("configs/{path}"), &Shipped::get(path).ok_or_else(gone)?.data)
            }
            Location::OnDisk(path) => read_file(path),
        }
    }

    /// The names of a group's files, ascending.
    pub fn names(&self, group: &str) -> Vec<String> {
        self.files.keys().filter(|(of, _)| of == group).map(|(_, name)| name.clone()).collect()
    }

    fn unknown(&self, group: &str, name: &str) -> ConfigError {
        let names: BTreeSet<&str> =
            self.files.keys().filter(|(of, _)| of == group).map(|(_, name)| name.as_str()).collect();
        ConfigError::UnknownName {
            group: group.to_owned(),
            name: name.to_owned(),
            hint: nearest(name, names.iter().copied())
                .map_or(String::new(), |near| format!(" (did you mean '{near}'?)")),
            available: names.into_iter().collect::<Vec<_>>().join(", "),
        }
    }
}

/// `model/rotary_mini.toml` -> (`model`, `rotary_mini`).
fn group_and_name(path: &Path) -> Option<(String, String)> {
    if path.extension()? != "toml" {
        return None;
    }
    let group = path.parent()?.to_str()?;
    Some((group.to_owned(), path.file_stem()?.to_str()?.to_owned()))
}

/// Reads and parses a file of the user's.
pub(super) fn read_file(path: &Path) -> Result<File, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| read_error(path, source))?;
    parse(path.display().to_string(), &bytes)
}

fn parse(origin: String, bytes: &[u8]) -> Result<File, ConfigError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| read_error(Path::new(&origin), io::Error::new(io::ErrorKind::InvalidData, error)))?;
    match toml::from_str(text) {
        Ok(table) => Ok(File { origin, table }),
        Err(error) => Err(syntax_error(origin, text, &error)),
    }
}

fn syntax_error(origin: String, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(before).filter(|byte| *byte == b'\n').count();
    ConfigError::Toml { origin, line, reason: error.message().lines().collect::<Vec<_>>().join(", ") }
}

fn read_dir(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = std::fs::read_dir(dir).map_err(|source| read_error(dir, source))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(|source| read_error(dir, source))).collect()
}

fn read_error(path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Read { path: path.to_owned(), source }
}
