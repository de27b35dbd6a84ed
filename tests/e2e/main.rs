//! End-to-end tests: the real programs, real `mpirun`, real kills. `cargo build --release --workspace --bins` first.

mod bad_input;
mod bench;
mod checkpoints;
mod damage;
mod data;
mod devices;
mod elastic;
mod evaluation;
mod failure;
mod generation;
mod golden_coverage;
mod hosts;
mod interface;
mod kills;
mod launcher;
mod micro_batches;
mod plan;
mod prepare;
mod program;
mod resume;
mod sharding;
mod slurm;
mod stopping;
mod text;
mod workspace;
