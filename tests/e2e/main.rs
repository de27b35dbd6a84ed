//! End-to-end tests: the real programs, real `mpirun`, real kills. `cargo build --release --workspace --bins` first.

mod bad_input;
mod bench;
mod checkpoints;
mod data;
mod devices;
mod elastic;
mod evaluation;
mod failure;
mod generation;
mod golden_coverage;
mod initial_weights;
mod interface;
mod launcher;
mod micro_batches;
mod plan;
mod prepare;
mod program;
mod proof;
mod resume;
mod sharding;
mod skipping;
mod slurm;
mod stopping;
mod text;
mod workspace;
