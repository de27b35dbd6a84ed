//! Sizes, times and limits by arithmetic: what fits into memory, and what a run would do on hardware that is only described.

mod communication;
mod fullest;
mod hardware;
mod limits;
mod memory;
mod prediction;
mod rows;
mod table;
#[cfg(test)]
mod testing;
mod work;

pub use hardware::Hardware;
pub use limits::Limit;
pub use memory::{LEAST_TOKENS, MOST_TOKENS, Resident, Sizes, TokenBudget};
pub use prediction::{Prediction, Subject};
pub use rows::{ASSUMED_MEDIAN, Row, RowMoments, assumed_rows};
pub use table::table;
