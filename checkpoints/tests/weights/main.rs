//! Weights of the Python reference: its golden state dicts, every form they come in, every way they can be damaged.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;
mod contradictions;
mod damage;
mod export;
mod forms;
mod golden;
