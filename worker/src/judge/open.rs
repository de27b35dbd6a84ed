//! The folder of a judge: `config.json`, weights and `tokenizer.json`, as the library transformers saves them.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoints::weights::{CONFIG_FILE, WeightsFile};
use data_pipeline::PlainTokenizer;
use ilm_model::Precision;
use ilm_model::judge::{Judge, JudgeConfig};
use tch::Device;

/// The folder of a judge cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It has no name, so figures cannot be named after it.
    #[error("--judge {} has no name; give the folder of a language model by its name", path.display())]
    Nameless {
        /// What was given.
        path: PathBuf,
    },
    /// Its `config.json` cannot be read.
    #[error("cannot read {}: {source}; --judge names a folder with config.json, model.safetensors and tokenizer.json", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Its `config.json` describes no judge.
    #[error("{} describes no judge: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: serde_json::Error,
    },
}

/// A judge's folder, opened; its parameters are not read yet.
#[derive(Debug)]
pub struct Folder {
    /// Its name, which figures have behind theirs.
    pub name: String,
    /// Text to the judge's ids.
    pub tokenizer: PlainTokenizer,
    /// `config.json` as it stands.
    description: String,
    config: JudgeConfig,
    weights: WeightsFile,
}

impl Folder {
    /// Opens the folder.
    ///
    /// # Errors
    /// A file that is missing, or is not what it should be.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        // `.` and `models/..` are named too.
        let name = fs::canonicalize(path).ok().and_then(|full| Some(full.file_name()?.to_str()?.to_owned()));
        let file = path.join(CONFIG_FILE);
        let description =
            fs::read_to_string(&file).map_err(|source| FolderError::Read { path: file.clone(), source })?;
        let config = serde_json::from_str(&description)
            .map_err(|reason| FolderError::Config { path: file, reason })?;
        Ok(Self {
            name: name.ok_or_else(|| FolderError::Nameless { path: path.to_owned() })?,
            tokenizer: PlainTokenizer::open(&path.join("tokenizer.json"))?,
            description,
            config,
            weights: WeightsFile::open(path)?,
        })
    }

    /// Reads the parameters.
    ///
    /// # Errors
    /// Weights of another model than `config.json` describes, or lack of memory.
    pub fn load(&self, device: Device, precision: Precision) -> anyhow::Result<Judge> {
        Judge::load(&self.config, device, precision, |name, shape| {
            // Some files have the names of the whole model, others those of the network without its output matrix.
            let whole = format!("transformer.{name}");
            let name = if self.weights.tensors().contains_key(&whole) { &whole } else { name };
            Ok(self.weights.read_shaped(name, shape)?)
        })
    }

    /// What tells this judge from others: its name, its configuration, and the names and types of its parameters.
    pub fn identity(&self) -> String {
        let types: Vec<_> =
            self.weights.tensors().values().map(|tensor| (&tensor.key, tensor.dtype())).collect();
        format!("{} {} {types:?}", self.name, self.description)
    }
}
