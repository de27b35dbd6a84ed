//! Memory of the process: how it is got from the operating system, and how much of it a rank may use.

mod available;
mod heap;

pub use available::{available_per_rank, free_on_gpus};
pub use heap::set_up_heap;
