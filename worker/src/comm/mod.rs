//! Collective operations between ranks: one trait, one implementation per transport.
//!
//! Every collective has a name, a sequence number and a deadline. Ranks compare name, sequence number, operation and
//! size before any data moves, so ranks that went different ways learn it at once instead of waiting for each other.

mod agreement;
mod buckets;
mod cuda;
mod dynamic;
mod engine;
mod equality;
mod exchange;
mod gather;
mod launch_env;
mod mpi;
mod mpi_exchange;
mod nccl;
mod neighbour;
mod notices;
mod ring;
mod solo;
mod sparse;
mod watchdog;

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

pub use self::buckets::BucketPlan;
pub use self::cuda::{CudaRuntime, Gpu};
pub use self::dynamic::GpuError;
pub(crate) use self::dynamic::reason;
pub(crate) use self::engine::MOST_PIECE_BYTES;
pub use self::exchange::{Alone, Exchange, ExchangeOp, FlatMemory};
pub use self::launch_env::LaunchEnv;
pub use self::mpi::{Mpi, abort_on_panic, abort_process};
pub use self::nccl::{Communicator, NcclExchange, NcclLibrary, UniqueId};
pub use self::notices::Alarm;
pub use self::solo::Solo;
use crate::signals::StopRequest;

/// How values of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
}

/// The memory that a collective works on, in place.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// Gradients and parameters.
    F32(&'a mut [f32]),
    /// Sums of metrics, counts and flags.
    F64(&'a mut [f64]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F64(data) => data.len(),
        }
    }

    fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F64(_) => size_of::<f64>(),
        }
    }
}

impl<'a> From<&'a mut [f32]> for Buffer<'a> {
    fn from(data: &'a mut [f32]) -> Self {
        Self::F32(data)
    }
}

impl<'a> From<&'a mut [f64]> for Buffer<'a> {
    fn from(data: &'a mut [f64]) -> Self {
        Self::F64(data)
    }
}

/// Operations that all ranks of a run call in the same order.
///
/// # Errors
/// Every operation fails with [`CommError`] if the transport does or if the ranks disagree on which operation is next.
pub trait Collectives {
    /// This process, `0..world_size`.
    fn rank(&self) -> usize;

    /// Processes of the run.
    fn world_size(&self) -> usize;

    /// Replaces `data` by its combination over all ranks.
    fn all_reduce(&mut self, name: &'static str, op: ReduceOp, data: Buffer<'_>) -> Result<(), CommError>;

    /// Replaces `data` by that of rank 0.
    fn broadcast(&mut self, name: &'static str, data: Buffer<'_>) -> Result<(), CommError>;

    /// Everybody's bytes, by rank; lengths may differ.
    fn all_gather(&mut self, name: &'static str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;

    /// Returns when every rank has arrived.
    fn barrier(&mut self, name: &'static str) -> Result<(), CommError>;

    /// From now on a request to stop that one rank gets is soon one of all ranks, whatever they are at.
    fn share_stop(&mut self, stop: &StopRequest);

    /// What makes all ranks report where they are, for who finds that they stand still by other means than these operations.
    fn alarm(&self) -> Alarm {
        Alarm::default()
    }

    /// Opens an exchange of flat buffers in host memory. It must be dropped before these collectives are.
    ///
    /// # Safety
    /// The buffers outlive the exchange, and between `begin` and the end of the next `finish` nobody touches the range of the
    /// buffer that an operation is about.
    unsafe fn exchange(&mut self, memory: FlatMemory) -> Result<Box<dyn Exchange>, CommError>;
}

/// What can go wrong between ranks.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// An MPI call returned an error code.
    #[error("MPI failed in collective '{name}' (number {sequence}): {message}")]
    Transport {
        /// Name of the collective.
        name: &'static str,
        /// Its number since the start.
        sequence: u64,
        /// MPI's own text.
        message: String,
    },
    /// The kernel refuses to copy from the memory of the rank before, as it did not at first.
    #[error(
        "the memory of the rank before cannot be read in collective 'bucket' (number {sequence}): {error}; with \
         OMPI_MCA_btl_vader_single_copy_mechanism=none ranks send messages instead"
    )]
    Memory {
        /// Number of the collective since the start.
        sequence: u64,
        /// Why not.
        error: nix::errno::Errno,
    },
    /// NCCL or a GPU failed in a collective.
    #[error("NCCL failed in collective '{name}' (number {sequence}): {message}")]
    Nccl {
        /// Name of the collective.
        name: &'static str,
        /// Its number since the start.
        sequence: u64,
        /// NCCL's or CUDA's own text.
        message: String,
    },
    /// A collective between GPUs did not end in time.
    #[error(
        "rank {rank} has waited more than {allowed} s in collective '{name}' (number {sequence}, {bytes} bytes) for another \
         rank's GPU; trainer.collective_timeout_secs allows no more"
    )]
    Late {
        /// This rank.
        rank: usize,
        /// Name of the collective.
        name: &'static str,
        /// Its number since the start.
        sequence: u64,
        /// Its size.
        bytes: usize,
        /// Seconds.
        allowed: u64,
    },
    /// A GPU or its libraries cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The ranks did not call the same operation.
    #[error(
        "rank {rank} is at collective '{name}' (number {sequence}, {bytes} bytes), but another rank is elsewhere: \
         the ranks have gone different ways"
    )]
    Disagreement {
        /// This rank.
        rank: usize,
        /// Name of this rank's collective.
        name: &'static str,
        /// Its number since the start.
        sequence: u64,
        /// Its size.
        bytes: usize,
    },
    /// A range of the flat buffers that does not exist or cannot be cut into equal parts.
    #[error("collective '{name}' is about elements {range:?} of {capacity}: no such range can be exchanged")]
    Range {
        /// Name of the collective.
        name: &'static str,
        /// The range.
        range: Range<usize>,
        /// Elements of the flat buffers.
        capacity: usize,
    },
    /// The exchange has failed before.
    #[error("the ranks have stopped exchanging gradients after an earlier failure")]
    Closed,
    /// The launcher started another number of processes than MPI connects.
    #[error(
        "{launcher} started {expected} ranks, but MPI connects {found}: launcher and program belong to different MPI \
         installations (with srun, --mpi=pmix is needed for Open MPI)"
    )]
    WorldSize {
        /// The variable that says so.
        launcher: &'static str,
        /// Ranks according to the launcher.
        expected: usize,
        /// Ranks according to MPI.
        found: usize,
    },
    /// MPI could not be started at all.
    #[error("MPI is already initialised or cannot give thread support 'multiple'")]
    Start,
    /// The ranks hold different values of something that must be equal.
    #[error("{what} differ between ranks: {who}")]
    Unequal {
        /// What was compared.
        what: &'static str,
        /// Which ranks have what.
        who: String,
    },
}

/// Connects the ranks that the launcher started; without a launcher, or with one rank, MPI is never initialised.
///
/// # Errors
/// If MPI does not start, or connects another number of ranks than the launcher says.
pub fn connect(env: Option<&LaunchEnv>, timeout: Duration) -> Result<Box<dyn Collectives>, CommError> {
    match env {
        Some(env) if env.world_size > 1 => Ok(Box::new(Mpi::start(env, timeout)?)),
        _ => Ok(Box::new(Solo)),
    }
}

/// Fails unless all ranks pass the same `value`, which the error shows.
///
/// # Errors
/// [`CommError::Unequal`] on every rank, or a failing collective.
pub fn assert_equal(
    comm: &mut dyn Collectives,
    what: &'static str,
    value: impl Display,
) -> Result<(), CommError> {
    let all = comm.all_gather(what, value.to_string().as_bytes())?;
    let all: Vec<String> = all.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    equality::check(&all).map_err(|who| CommError::Unequal { what, who })
}
