//! The update of the parameters from summed gradients: schedule, clipping, AdamW, moving average; and their checksum.
//!
//! A rank updates parts of the arena: all of it, or with a sharded optimizer its own. In host memory an update is one fused
//! pass, elsewhere a few tensor operations.

mod adamw;
mod checksum;
mod clip;
mod device;
mod ema;
mod fused;
mod parallel;
mod parts;
mod schedule;

pub use self::adamw::{AdamW, Update};
pub use self::checksum::checksum;
pub use self::clip::{clip_factor, squared_norm};
pub use self::ema::Ema;
pub use self::parts::{Part, Parts};
pub use self::schedule::learning_rate;
