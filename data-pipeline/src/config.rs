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
    /// Megabytes (2^20 bytes) of decoded row groups that a rank keeps, per split.
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
    /// The star-graph generator.
    pub star: StarConfig,
    /// Visit the training rows in a new order each epoch; false reads them as they lie.
    pub shuffle: bool,
    /// Row groups whose rows are mixed with one another.
    pub window_groups: usize,
    /// Lanes of the global order; the world size must divide it.
    pub canonical_lanes: usize,
    /// Threads that read, tokenise and drop, per rank.
    pub threads: usize,
    /// Steps that are prepared ahead.
    pub prefetch_steps: usize,
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
            star: StarConfig::default(),
            shuffle: true,
            window_groups: 16,
            canonical_lanes: 64,
            threads: 1,
            prefetch_steps: 4,
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
