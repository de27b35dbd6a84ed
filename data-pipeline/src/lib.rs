//! Rows of Parquet shards or generated graphs, in a global order, dropped and packed into batches.
//!
//! Every random decision is a function of (seed, epoch, row), so the batches of a run depend on its data position alone:
//! not on the number of ranks, threads or restarts.

mod batch;
mod collate;
pub mod config;
mod dataset;
mod detokenize;
mod drop;
mod error;
mod evaluate;
mod loader;
mod open;
mod order;
mod parquet;
mod permutation;
mod plan;
mod prefetch;
mod prepare;
mod progress;
mod random;
mod star;
mod tokenizer;

pub use crate::{
    batch::{PackedBatch, PadSide, PromptBatch, pad_truncate},
    collate::Collator,
    config::{DataConfig, Detokenizer, SpecialTokenNames, StarConfig, StarKind, Task},
    dataset::{Dataset, Example, SourceFile},
    detokenize::detokenize_lm1b,
    drop::{Drops, KeyedDrops, SampleKey},
    error::{Error, Result, RowAddress},
    evaluate::{EvalLoader, EvalPlan},
    loader::{StepBatch, TrainLoader},
    open::Split,
    order::GlobalOrder,
    parquet::{Columns, ParquetDataset, ParquetOptions, panic_becomes_error},
    permutation::Permutation,
    plan::BatchPlan,
    prepare::{LengthRule, PrepareOptions, PrepareReport, prepare},
    progress::{Amounts, Progress},
    random::{Purpose, keyed_rng, shuffle, uniform_below},
    star::{StarDataset, StarGraph, materialise},
    tokenizer::{
        HuggingFaceTokenizer, NumbersTokenizer, SpecialTokens, Tokenizer, TokenizerKind, TokenizerOptions,
        train_tokenizer,
    },
};
