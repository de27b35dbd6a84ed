//! Training: the state of a run, one step of it, and its checkpoints.

mod balance;
mod digest;
mod digest_step;
mod division;
mod guard;
mod meaning;
mod micro_batch;
mod reducer;
mod resume;
mod save;
mod saver;
mod sections;
mod state;
mod step;

pub use self::balance::balance_ranks;
pub use self::digest::{Bits, RunDigest, StepDigest, samples_hash};
pub use self::digest_step::digest_step;
pub use self::division::Division;
pub use self::guard::{Guard, Skip, Verdict};
pub use self::meaning::{
    OtherNetwork, OtherTokenizer, check_network, check_tokenizer, has_tokenizer, network_settings,
};
pub use self::micro_batch::{Source, TokenLimit, recorded_tokens};
pub use self::reducer::{Reducer, division};
pub use self::resume::{Incompatible, NoCheckpoint, check_model, check_run, find_checkpoint};
pub use self::save::{RunFacts, SaveFailed, save};
pub use self::saver::{Saved, Saver};
pub use self::sections::StateSection;
pub use self::state::{TrainState, checkpoint_layout, has_average, load_weights};
pub use self::step::{
    GlobalFigures, NonFinite, RankFlags, StepFigures, batch_view, train_step, update_parameters,
};
