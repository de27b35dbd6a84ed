//! Rows of Parquet shards or generated graphs, in a global order, dropped and packed into batches.
//!
//! Every random decision is a function of (seed, epoch, row), so the batches of a run depend on its data position alone:
//! not on the number of ranks, threads or restarts.

mod batch;
mod collate;
mod concat;
pub mod config;
mod cut;
mod dataset;
mod deal;
mod dense;
mod describe;
mod detokenize;
mod drop;
mod error;
mod evaluate;
mod loader;
mod manifest;
mod open;
mod order;
mod output;
mod parquet;
mod permutation;
mod plan;
mod pool;
mod prefetch;
mod prepare;
mod progress;
mod prompts;
mod random;
mod read_ahead;
mod repack;
mod schedule;
mod source;
mod spans;
mod star;
mod tokenizer;
mod wire;

pub use crate::{
    batch::{BatchArrays, BatchLayout, PackedBatch},
    collate::Collator,
    concat::Concat,
    config::{DataConfig, Detokenizer, MixtureEntry, OnBad, SpecialTokenNames, StarConfig, StarKind, Task},
    cut::MicroBatchLimit,
    dataset::{DataFile, Dataset, Example, Part},
    deal::Deal,
    dense::{PadSide, pad_truncate},
    describe::{DescribeOptions, describe_batch},
    detokenize::detokenize_lm1b,
    drop::{Drops, KeyedDrops, SampleKey},
    error::{Error, Result, RowAddress},
    evaluate::{EvalLoader, EvalPlan},
    loader::{LoaderFigures, LoaderOptions, StepBatch, TrainLoader, TrainStream},
    manifest::{DatasetManifest, FileSummary},
    open::Split,
    order::{GlobalOrder, OrderSettings, SourceProgress},
    parquet::{Columns, ParquetDataset, ParquetOptions, Reader, panic_becomes_error},
    permutation::Permutation,
    plan::BatchPlan,
    pool::{BatchPool, HostMemory, HostSlab, PlainMemory},
    prefetch::Next,
    prepare::{HoldOut, LengthRule, PrepareOptions, PrepareReport, prepare},
    progress::{Amounts, Progress},
    prompts::PromptBatch,
    random::{Purpose, keyed_rng, shuffle, uniform_below},
    repack::Repacker,
    schedule::{Schedule, Steps},
    source::{Location, Sources, StoreConfig},
    spans::SpanDrops,
    star::{StarDataset, StarGraph, materialise},
    tokenizer::{
        HuggingFaceTokenizer, NumbersTokenizer, PlainTokenizer, SpecialTokens, Tokenizer, TokenizerKind,
        TokenizerOptions, train_tokenizer,
    },
};

/// Target of the warnings of a data set, which all processes give alike that open it; whoever starts many of them need not repeat
/// what the others say.
pub const WARNINGS_OF_A_SET: &str = "data_pipeline::set";
