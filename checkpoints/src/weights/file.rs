//! Published weights opened for reading: which files there are and which tensor lies where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

use super::error::WeightsError;
use super::header::{Header, TensorInfo};
use super::keys::{Meaning, meaning};
use super::{INDEX_FILE, WEIGHTS_FILE, index};
use crate::error::{Error, Result};

/// A state dict of the reference. Holds the headers and open files, no tensor.
#[derive(Debug)]
pub struct WeightsFile {
    /// The file or index.
    path: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
    dropped: Vec<String>,
}

/// One safetensors file of the state dict.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Where in the file the data begins.
    pub(super) data_start: u64,
}

/// A tensor of the state dict.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its key in the file, prefixes included.
    pub key: String,
    /// Its shape.
    pub shape: Vec<u64>,
    pub(super) dtype: Dtype,
    pub(super) part: Arc<Part>,
    /// First byte and one past the last within the part's data.
    pub(super) bytes: (u64, u64),
}

impl StoredTensor {
    /// Its element type as safetensors calls it: `F32`, `BF16`, `I64`, ...
    pub fn dtype(&self) -> String {
        self.dtype.to_string()
    }
}

impl WeightsFile {
    /// Opens a safetensors file, an index of several, or the folder that holds either. Every header is checked
    /// against the size of its file before anything is allocated for it.
    ///
    /// # Errors
    /// [`WeightsError`] for whatever is wrong with a header or between headers; otherwise the failure of the disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = locate(path.as_ref())?;
        let mut weights = Self { path: path.clone(), tensors: BTreeMap::new(), dropped: Vec::new() };
        if path.extension().is_some_and(|extension| extension == "json") {
            for (file, keys) in index::read(&path)? {
                let (part, tensors) = Part::open(file)?;
                index::confirm(&path, &part.path, keys, &tensors)?;
                weights.add(part, tensors)?;
            }
        } else {
            let (part, tensors) = Part::open(path)?;
            weights.add(part, tensors)?;
        }
        Ok(weights)
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors by the model's own names, frequencies included.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// The keys that were left out because the model no longer has them.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&StoredTensor, WeightsError> {
        let unknown = || WeightsError::UnknownTensor { path: self.path.clone(), name: name.into() };
        self.tensors.get(name).ok_or_else(unknown)
    }

    /// Takes the tensors of one file in under the model's names.
    fn add(&mut self, part: Part, tensors: Vec<(String, TensorInfo)>) -> Result<(), WeightsError> {
        let part = Arc::new(part);
        for (key, info) in tensors {
            let Meaning::Tensor(name) = meaning(&key) else {
                self.dropped.push(key);
                continue;
            };
            let name = name.to_owned();
            if let Some(first) = self.tensors.get(&name) {
                let (path, first) = (self.path.clone(), first.key.clone());
                return Err(WeightsError::SameName { path, first, second: key, name });
            }
            let TensorInfo { dtype, shape, data_offsets: bytes } = info;
            self.tensors.insert(name, StoredTensor { key, shape, dtype, part: part.clone(), bytes });
        }
        Ok(())
    }
}

impl Part {
    fn open(path: PathBuf) -> Result<(Self, Vec<(String, TensorInfo)>)> {
        let found = path.metadata().map_err(|e| missing_or_io(&path, e))?;
        // Opening a pipe would wait for a writer.
        if !found.is_file() {
            return Err(WeightsError::NotAFile { path }.into());
        }
        let file = File::open(&path).map_err(|e| missing_or_io(&path, e))?;
        let Header { tensors, data_start } = Header::read(&path, &file, found.len())?;
        Ok((Self { path, file, data_start }, tensors))
    }
}

/// The file or index to open for what the caller gave.
fn locate(path: &Path) -> Result<PathBuf> {
    let found = path.metadata().map_err(|e| missing_or_io(path, e))?;
    if !found.is_dir() {
        return Ok(path.into());
    }
    let files = [WEIGHTS_FILE, INDEX_FILE].map(|name| path.join(name));
    let found = files.into_iter().find(|file| file.exists());
    found.ok_or_else(|| WeightsError::NotFound { path: path.into() }.into())
}

fn missing_or_io(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => WeightsError::NotFound { path: path.into() }.into(),
        _ => Error::io("open", path, e),
    }
}
