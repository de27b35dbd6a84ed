//! Rows of Parquet shards or generated graphs, in a global order, dropped and packed into batches.

pub mod config;
