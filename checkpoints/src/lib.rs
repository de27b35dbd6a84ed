//! Sharded checkpoints on disk: written whole or not at all, verified on every read.

pub mod config;
