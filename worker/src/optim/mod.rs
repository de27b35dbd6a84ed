//! The update of the parameters from summed gradients: schedule, clipping, AdamW, moving average.
//!
//! Everything here works on flat slices in a fixed order, so a rank may hold the whole arena or a part of it.

mod adamw;
mod clip;
mod ema;
mod schedule;

pub use self::adamw::{AdamW, Segment, Update};
pub use self::clip::{clip_factor, norm};
pub use self::ema::Ema;
pub use self::schedule::learning_rate;

/// Elements that one task of the thread pool takes: 256 KiB of one array, so that a task's arrays share the cache.
/// Fixed, because the order of additions in [`norm`] depends on it.
const CHUNK: usize = 1 << 16;
