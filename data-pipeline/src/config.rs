//! Section `data` of the configuration: which rows to read and how they become examples.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::source::{Location, StoreConfig};

/// Section `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// What the rows are.
    pub task: Task,
    /// Parquet file, directory, glob or URL of the training split, or a list of them; none generates it (star graphs
    /// only).
    pub train: Option<Location>,
    /// The same for the validation split.
    pub validation: Option<Location>,
    /// The same for the test split.
    pub test: Option<Location>,
    /// How object stores are reached.
    pub store: StoreConfig,
    /// Folder that keeps what stores sent; none fetches it again each time. Ranks and runs may share it.
    pub cache_dir: Option<PathBuf>,
    /// Megabytes (2^20 bytes) that the folder may take; what was not used for the longest time is deleted.
    pub cache_mib: u64,
    /// Megabytes (2^20 bytes) of decoded row groups that a rank keeps, of all its splits and sources together.
    pub memory_mib: usize,
    /// Go on from a checkpoint although the data set has changed since.
    pub allow_changed: bool,
    /// A `tokenizer.json` (text only; star graphs bring their own).
    pub tokenizer: Option<PathBuf>,
    /// The strings that play the special roles; the ones the tokenizer lacks are added after its last id.
    pub special_tokens: SpecialTokenNames,
    /// What is undone to the text before it is tokenised.
    pub detokenizer: Detokenizer,
    /// Keep the first so many ids of a text (none: all).
    pub max_tokens: Option<usize>,
    /// What a bad row does: one that is null or has a null element, is not UTF-8, has an id outside the vocabulary or
    /// cannot be tokenised. A row without tokens (an empty or blank text, an empty list) is not bad.
    pub on_bad_row: OnBad,
    /// What a damaged file does: one without a sound footer or the wanted column, or with a row group that cannot be
    /// decoded (then its sound row groups stay). A file that cannot be reached is an error in any case.
    pub on_bad_file: OnBad,
    /// The star-graph generator.
    pub star: StarConfig,
    /// Visit the training rows in a new order each epoch; false reads them as they lie.
    pub shuffle: bool,
    /// Row groups whose rows are mixed with one another within a lane. A rank has those of all its lanes open at a time.
    pub window_groups: usize,
    /// Lanes of the global order; every batch takes its samples from them in turn. The most ranks a run can have.
    pub canonical_lanes: usize,
    /// Sources to mix for training, instead of `train`.
    pub mixture: Vec<MixtureEntry>,
    /// Passes over the training rows after which the run ends (none: no end); not with a mixture.
    pub epochs: Option<u64>,
    /// Samples over all ranks after which the run ends (none: no end).
    pub max_samples: Option<u64>,
    /// Global batches whose data is never served, as "a..b" for a to b - 1. Batch k begins at position k times
    /// `global_batch_size`: they count from 0, those that are never served among them, where the steps of a run count from
    /// 1 and only what was served.
    pub skip_steps: Vec<String>,
    /// Threads that read, tokenise and drop, per rank.
    pub threads: usize,
    /// Steps that are prepared ahead.
    pub prefetch_steps: usize,
    /// Steps, ahead of those in preparation, whose rows are fetched already (0: none).
    pub read_ahead_steps: usize,
    /// Print the first micro-batch of rank 0 as text before training starts.
    pub print_batch: bool,
}

/// A source of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureEntry {
    /// What the source is called in reports.
    pub name: String,
    /// Parquet file, directory, glob or URL, or a list of them.
    pub path: Location,
    /// How often samples are taken from the source, in proportion to the weights of the others.
    pub weight: f64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            task: Task::Text,
            train: None,
            validation: None,
            test: None,
            store: StoreConfig::default(),
            cache_dir: None,
            cache_mib: 65_536,
            memory_mib: 1024,
            allow_changed: false,
            tokenizer: None,
            special_tokens: SpecialTokenNames::default(),
            detokenizer: Detokenizer::None,
            max_tokens: None,
            on_bad_row: OnBad::Error,
            on_bad_file: OnBad::Error,
            star: StarConfig::default(),
            shuffle: true,
            // Every batch mixes all lanes, so it holds rows of up to 64 windows anyway; two groups also part neighbours
            // within a lane, and more would only cost memory.
            window_groups: 2,
            canonical_lanes: 64,
            mixture: Vec::new(),
            epochs: None,
            max_samples: None,
            skip_steps: Vec::new(),
            threads: 1,
            prefetch_steps: 4,
            read_ahead_steps: 16,
            print_batch: false,
        }
    }
}

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Language modelling: a text or its token ids.
    Text,
    /// Path finding in star graphs: a prompt (edges, source, goal) and the path as consecutive edges.
    Star,
}

/// What damaged data does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    /// End the run with an error that names the place.
    #[default]
    Error,
    /// Leave it out, with a warning, and count it.
    Skip,
}

/// What is undone to a text before it is tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detokenizer {
    /// Nothing.
    None,
    /// The spaces that lm1b puts around punctuation.
    Lm1b,
}

/// The strings of the special tokens, by role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpecialTokenNames {
    /// Padding.
    pub pad: String,
    /// First token of every row; the stopping head reads it.
    pub cls: String,
    /// Mask (kept for tokenizers that have it; the model never sees it).
    pub mask: String,
    /// End of text.
    pub eos: String,
    /// Begin of the segment that tokens are dropped from.
    pub bos: String,
    /// Separator.
    pub sep: String,
    /// Unknown piece.
    pub unk: String,
}

impl Default for SpecialTokenNames {
    fn default() -> Self {
        Self {
            pad: "[PAD]".into(),
            cls: "[CLS]".into(),
            mask: "[MASK]".into(),
            eos: "[EOS]".into(),
            bos: "[BOS]".into(),
            sep: "[SEP]".into(),
            unk: "[UNK]".into(),
        }
    }
}

/// The star-graph generator. Numbers of nodes include the shared centre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StarConfig {
    /// How the arms are laid.
    pub kind: StarKind,
    /// Arms.
    pub degree: usize,
    /// Nodes of every arm (symmetric).
    pub path_length: usize,
    /// Least nodes of an arm (asymmetric).
    pub min_path_length: usize,
    /// Most nodes of an arm (asymmetric).
    pub max_path_length: usize,
    /// Least nodes that follow the centre on an arm (asymmetric).
    pub min_plan_length: usize,
    /// Node ids to draw from; node k is the token "k".
    pub num_nodes: usize,
    /// Graphs of the training split.
    pub train_size: u64,
    /// Graphs of the validation split.
    pub validation_size: u64,
    /// Graphs of the test split.
    pub test_size: u64,
}

impl Default for StarConfig {
    fn default() -> Self {
        Self {
            kind: StarKind::Symmetric,
            degree: 3,
            path_length: 5,
            min_path_length: 3,
            max_path_length: 6,
            min_plan_length: 2,
            num_nodes: 20,
            train_size: 50_000,
            validation_size: 100,
            test_size: 5_000,
        }
    }
}

/// How the arms of a star graph are laid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StarKind {
    /// All arms start at the centre and have the same length; the source is the centre.
    Symmetric,
    /// Arms of different lengths pass through the centre; the source is an arm's first node.
    Asymmetric,
}
