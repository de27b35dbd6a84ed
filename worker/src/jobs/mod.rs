//! The commands of `ilm-worker`, one file each.

mod bench;
mod checkpoints;
mod evaluate;
mod export;
mod generate;
mod import;
mod judge;
mod list;
mod offline;
mod plan;
mod prepare;
mod recorded;
mod replay;
mod rows;
mod shared_rows;
mod train;
mod train_tokenizer;
mod verify_resume;

pub use self::bench::bench;
pub use self::checkpoints::checkpoints;
pub use self::evaluate::evaluate;
pub use self::export::export;
pub use self::generate::generate;
pub use self::import::import;
pub use self::judge::judge;
pub use self::list::{experiments, show_config};
pub use self::plan::plan;
pub use self::prepare::prepare;
pub use self::replay::replay;
pub use self::shared_rows::RowsGone;
pub use self::train::train;
pub use self::train_tokenizer::train_tokenizer;
pub use self::verify_resume::verify_resume;
