//! The commands of `ilm-worker`, one file each.

mod evaluate;
mod list;
mod prepare;
mod train;

pub use self::evaluate::evaluate;
pub use self::list::{experiments, show_config};
pub use self::prepare::prepare;
pub use self::train::train;
