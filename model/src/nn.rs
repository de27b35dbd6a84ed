//! Numerical helpers on the scores of one example: a matrix of S positions x V tokens that is normalised, searched and drawn
//! from as one whole ("over the last two dimensions" of a batch, which is a loop over its examples).
//!
//! Everything works on borrowed host slices and accumulates in f64.

mod choose;
mod scores;
mod tokens;

pub use choose::{Draw, Entry, Place};
pub use scores::{MaskedCe, Scores};
pub use tokens::{keep_tokens, remove_tokens};
