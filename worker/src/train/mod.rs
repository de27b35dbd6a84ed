//! Training: the state of a run, one step of it, and its checkpoints.

mod micro_batch;
mod resume;
mod save;
mod saver;
mod state;
mod step;

pub use self::micro_batch::{Source, TokenLimit, recorded_tokens};
pub use self::resume::{Incompatible, check_model, check_run, find_checkpoint};
pub use self::save::{PeerFailed, RunFacts, save};
pub use self::saver::{Saved, Saver};
pub use self::state::{TrainState, checkpoint_layout, has_average, load_weights};
pub use self::step::{GlobalFigures, NonFinite, RankFlags, StepFigures, batch_view, train_step};
