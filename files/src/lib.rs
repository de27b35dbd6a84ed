//! Files that more than one process looks at: replaced as a whole, and written by one process at a time.

mod lock;
mod replace;

pub use lock::{FileLock, LockError};
pub use replace::{is_taken, replace};
