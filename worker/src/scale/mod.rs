//! Sizes, times and limits by arithmetic: what fits into memory, and what a run would do on hardware that is only described.

mod memory;

pub use memory::{LEAST_TOKENS, MOST_TOKENS, Resident, Sizes, TokenBudget};
