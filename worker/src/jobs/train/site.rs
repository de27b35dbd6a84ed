//! Where a rank trains: its threads, its device, and the state there.

use crate::assembly::Assembly;
use crate::comm::Collectives;
use crate::config::Experiment;
use crate::device::{Available, RankDevice};
use crate::threads;
use crate::train::{TokenLimit, TrainState, division};

/// A rank that is ready to train.
pub(in crate::jobs) struct Site {
    pub(in crate::jobs) threads: usize,
    pub(in crate::jobs) device: RankDevice,
    pub(in crate::jobs) state: TrainState,
    world_size: usize,
    /// What was free before the state took its share.
    available: Available,
}

impl Site {
    /// Agrees with the other ranks on threads, memory and devices, and makes the state before the first step.
    ///
    /// # Errors
    /// Ranks that cannot agree, a failing collective, settings that fit no model, too little memory.
    pub(in crate::jobs) fn set_up(
        comm: &mut dyn Collectives,
        config: &Experiment,
        assembly: &Assembly,
    ) -> anyhow::Result<Self> {
        let threads = threads::threads_per_rank(comm, config.trainer.threads)?;
        threads::set_threads(threads);
        let device = RankDevice::select(comm, &config.trainer)?;
        let available = device.available(comm)?;
        let model = assembly.build_model(config, device.device())?;
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let division = division(&config.trainer, model.arena(), rank, world_size);
        let state = TrainState::new(model, config, division)?;
        Ok(Self { threads, device, state, world_size, available })
    }

    /// How large micro-batches may be; `recorded` is the limit of the checkpoint that the run goes on from.
    pub(in crate::jobs) fn limit(&self, config: &Experiment, recorded: Option<u64>) -> TokenLimit {
        TokenLimit::new(config, &self.state.model, self.world_size, self.available, recorded)
    }
}
