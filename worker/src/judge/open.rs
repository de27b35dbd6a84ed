//! The folder of a judge: `config.json`, weights and `tokenizer.json`, as the library transformers saves them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::weights::{CONFIG_FILE, WeightsFile};
use data_pipeline::PlainTokenizer;
use ilm_model::Precision;
use ilm_model::judge::{Judge, JudgeConfig};
use tch::Device;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zerocopy::IntoBytes;

const TOKENIZER_FILE: &str = "tokenizer.json";

/// Constants that some versions of the library save among the parameters.
const CONSTANTS: [&str; 3] = [".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"];
const HEAD: &str = "lm_head.weight";

/// The folder of a judge cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file of it cannot be read.
    #[error("cannot read {}: {source}; --judge names a folder with config.json, model.safetensors and tokenizer.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It holds no judge, or one that is not known here.
    #[error("{} cannot judge: {reason}", path.display())]
    Unusable {
        /// The folder or the file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It has parameters that its `config.json` says nothing of.
    #[error(
        "{} has '{key}' and {others} more parameters that are no part of what config.json describes; check that it is of these weights",
        path.display()
    )]
    Surplus {
        /// The folder.
        path: PathBuf,
        /// The first of them.
        key: String,
        /// How many follow.
        others: usize,
    },
}

/// A judge's folder, opened; its parameters are not read yet.
#[derive(Debug)]
pub struct Folder {
    /// Its name, which figures have behind theirs.
    pub name: String,
    /// Text to the judge's ids.
    pub tokenizer: PlainTokenizer,
    path: PathBuf,
    config: JudgeConfig,
    weights: WeightsFile,
    /// Of `config.json` and `tokenizer.json`.
    hash: u64,
}

impl Folder {
    /// Opens the folder.
    ///
    /// # Errors
    /// A file that is missing, or is not what it should be.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut hash = Xxh3::new();
        let mut read = |name: &str| {
            let file = path.join(name);
            let bytes = fs::read(&file).map_err(|source| FolderError::Read { path: file.clone(), source })?;
            hash.update(&xxh3_64(&bytes).to_le_bytes());
            Ok::<_, FolderError>((file, bytes))
        };
        let (file, bytes) = read(CONFIG_FILE)?;
        let config = serde_json::from_slice(&bytes)
            .map_err(|error| FolderError::Unusable { path: file, reason: error.to_string() })?;
        let (file, _) = read(TOKENIZER_FILE)?;
        let tokenizer = PlainTokenizer::open(&file)
            .map_err(|error| FolderError::Unusable { path: path.to_owned(), reason: error.to_string() })?;
        let weights = WeightsFile::open(path)?;
        Ok(Self {
            name: name_of(path),
            tokenizer,
            path: path.to_owned(),
            config,
            weights,
            hash: hash.digest(),
        })
    }

    /// Reads the parameters; the number tells these files from any others.
    ///
    /// # Errors
    /// Weights of another model than `config.json` describes, or lack of memory.
    pub fn load(&self, device: Device, precision: Precision) -> anyhow::Result<(Judge, u64)> {
        let (mut hash, mut used) = (Xxh3::with_seed(self.hash), BTreeSet::new());
        let loaded = Judge::load(&self.config, device, precision, |name, shape| {
            // Some files have the names of the whole model, others those of the network without its output matrix.
            let whole = format!("transformer.{name}");
            let name = if self.weights.tensors().contains_key(&whole) { &whole } else { name };
            let values = self.weights.read_shaped(name, shape)?;
            hash.update(values.as_bytes());
            used.insert(name.to_owned());
            Ok(values)
        });
        let judge = loaded.map_err(|error: anyhow::Error| self.blame(error))?;
        self.refuse_surplus(&used)?;
        Ok((judge, hash.digest()))
    }

    /// Says of what does not fit a judge that its folder is to blame.
    pub fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<ilm_model::Error>() {
            Some(cause) if cause.is_config() => self.unusable(cause.to_string()).into(),
            _ => error,
        }
    }

    /// The error of a judge that does not do what it should.
    pub fn unusable(&self, reason: String) -> FolderError {
        FolderError::Unusable { path: self.path.clone(), reason }
    }

    /// A network that lacks a part of its layers would judge without a complaint.
    fn refuse_surplus(&self, used: &BTreeSet<String>) -> Result<(), FolderError> {
        let is_known = |name: &str| {
            used.contains(name) || name == HEAD || CONSTANTS.iter().any(|constant| name.ends_with(constant))
        };
        let mut surplus = self.weights.tensors().values().zip(self.weights.tensors().keys());
        let mut surplus = surplus.by_ref().filter(|(_, name)| !is_known(name)).map(|(tensor, _)| &tensor.key);
        match surplus.next() {
            Some(key) => Err(FolderError::Surplus {
                path: self.path.clone(),
                key: key.clone(),
                others: surplus.count(),
            }),
            None => Ok(()),
        }
    }
}

/// The name by which a folder was given; of `.` and `..`, what they are called.
fn name_of(path: &Path) -> String {
    let named = path.file_name().map(ToOwned::to_owned);
    let named = named.or_else(|| Some(fs::canonicalize(path).ok()?.file_name()?.to_owned()));
    named.map_or_else(|| "judge".to_owned(), |name| name.to_string_lossy().into_owned())
}
