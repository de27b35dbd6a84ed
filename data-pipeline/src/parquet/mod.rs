//! Parquet shards as a data set: footers are checked at the start, row groups are decoded when a row of them is asked for.

mod cache;
mod chunk;
mod columns;
mod dataset;
mod decode;
mod files;
mod footers;
mod groups;
mod index;
mod lists;
mod memory;
mod pages;
mod policy;
mod thrift;

pub use columns::Columns;
pub use dataset::{ParquetDataset, ParquetOptions};
pub use decode::panic_becomes_error;
pub(crate) use index::TOKENIZER_KEY;
pub use memory::Reader;
