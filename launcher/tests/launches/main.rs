//! Real launches: the built `ilm-launch`, real mpirun, and small programs in the place of the worker.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on has to fail its test")]

mod endings;
mod heartbeats;
mod hosts;
mod output;
mod restarts;
mod signals;
mod slurm;
mod status;
mod support;
