//! The commands of `ilm-worker`, one file each.

mod evaluate;
mod generate;
mod list;
mod offline;
mod prepare;
mod train;

pub use self::evaluate::evaluate;
pub use self::generate::generate;
pub use self::list::{experiments, show_config};
pub use self::prepare::prepare;
pub use self::train::train;
