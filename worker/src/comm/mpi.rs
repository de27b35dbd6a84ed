//! Ranks connected by MPI, on host memory.
//!
//! The calls go through MPI's C interface, because the safe bindings offer neither reductions in place nor error codes.

use std::ffi::{c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mpi::environment::Universe;
use mpi::ffi;
use mpi::traits::{AsRaw, Communicator};

use super::agreement::Agreement;
use super::gather::gather_bytes;
use super::mpi_exchange::MpiExchange;
use super::neighbour::Neighbours;
use super::notices::{Alarm, Notices, lock};
use super::ring::Ring;
use super::watchdog::{Watchdog, report};
use super::{Buffer, Collectives, CommError, Exchange, FlatMemory, LaunchEnv, ReduceOp};
use crate::signals::StopRequest;
use crate::{complain, exit, vitals};

/// Large reductions go in pieces that fit the caches: measured twice as fast as one call on one host.
const PIECE_BYTES: usize = 1 << 20;

/// True between MPI_Init and MPI_Finalize; only then may a dying process call MPI_Abort.
static CONNECTED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// MPI_IN_PLACE, which is a macro and therefore not in the bindings.
    pub(super) fn ilm_mpi_in_place() -> *mut c_void;
}

/// All ranks that the launcher started.
pub struct Mpi {
    comm: ffi::MPI_Comm,
    rank: usize,
    world_size: usize,
    notices: Arc<Mutex<Notices>>,
    watchdog: Arc<Watchdog>,
    /// Finalises MPI when dropped; declared last, so after the watchdog has stopped.
    _universe: Universe,
}

impl Mpi {
    /// Initialises MPI and checks it against what the launcher says.
    ///
    /// # Errors
    /// If MPI does not start or connects another number of ranks.
    pub fn start(env: &LaunchEnv, timeout: Duration) -> Result<Self, CommError> {
        let (universe, threading) = meet(env, timeout)?;
        CONNECTED.store(true, Ordering::SeqCst);
        // Not finalised on an error: that waits for other ranks, and whoever hears of the error ends them by MPI_Abort, which is
        // impossible after it.
        let universe = ManuallyDrop::new(universe);
        let world = universe.world();
        let (rank, world_size) = (world.rank() as usize, world.size() as usize);
        if world_size != env.world_size {
            return Err(CommError::WorldSize {
                launcher: env.source,
                expected: env.world_size,
                found: world_size,
            });
        }
        if threading != mpi::Threading::Multiple {
            return Err(CommError::Start);
        }
        let comm = world.as_raw();
        // SAFETY: `comm` is MPI_COMM_WORLD of an initialised MPI, and the handler is one of MPI's constants.
        unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
        let notices = Notices::new(comm, rank, world_size).map_err(|_| CommError::Start)?;
        let notices = Arc::new(Mutex::new(notices));
        let watchdog = watch(rank, timeout, &notices).map_err(|_| CommError::Start)?;
        let (watchdog, _universe) = (Arc::new(watchdog), ManuallyDrop::into_inner(universe));
        Ok(Self { comm, rank, world_size, notices, watchdog, _universe })
    }

    /// Runs one named collective under the deadline, after all ranks have agreed that it is the next one.
    fn collective<T>(
        &mut self,
        name: &'static str,
        bytes: usize,
        call: impl FnOnce(ffi::MPI_Comm) -> Result<T, c_int>,
    ) -> Result<T, CommError> {
        let watched = self.watchdog.begin(name, bytes);
        let _waits = vitals::wait_for_others();
        let (comm, sequence) = (self.comm, watched.number);
        let agreed = Agreement::begin(comm, &format!("{name} {sequence} {bytes}")).and_then(Agreement::wait);
        let result = match agreed {
            Ok(true) => call(comm).map_err(Some),
            Ok(false) => Err(None),
            Err(code) => Err(Some(code)),
        };
        self.watchdog.end(watched);
        result.map_err(|code| match code {
            Some(code) => CommError::Transport { name, sequence, message: error_text(code) },
            None => CommError::Disagreement { rank: self.rank, name, sequence, bytes },
        })
    }
}

impl Collectives for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&mut self, name: &'static str, op: ReduceOp, data: Buffer<'_>) -> Result<(), CommError> {
        let raw = RawBuffer::of(data);
        self.collective(name, raw.bytes(), |comm| {
            raw.pieces(PIECE_BYTES).try_for_each(|(start, count)| {
                // SAFETY: the piece lies in exclusively borrowed memory of `raw`, whose datatype describes it.
                check(unsafe {
                    ffi::MPI_Allreduce(ilm_mpi_in_place(), start, count, raw.datatype, reduction(op), comm)
                })
            })
        })
    }

    fn broadcast(&mut self, name: &'static str, data: Buffer<'_>) -> Result<(), CommError> {
        let raw = RawBuffer::of(data);
        self.collective(name, raw.bytes(), |comm| {
            raw.pieces(PIECE_BYTES).try_for_each(|(start, count)| {
                // SAFETY: as in `all_reduce`.
                check(unsafe { ffi::MPI_Bcast(start, count, raw.datatype, 0, comm) })
            })
        })
    }

    fn all_gather(&mut self, name: &'static str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let world_size = self.world_size;
        // Lengths may differ by rank, so they are no part of what the ranks must agree on.
        self.collective(name, 0, |comm| gather_bytes(comm, world_size, mine))
    }

    fn barrier(&mut self, name: &'static str) -> Result<(), CommError> {
        // SAFETY: the communicator is valid for as long as `self`.
        self.collective(name, 0, |comm| check(unsafe { ffi::MPI_Barrier(comm) }))
    }

    fn share_stop(&mut self, stop: &StopRequest) {
        lock(&self.notices).share(stop);
    }

    fn alarm(&self) -> Alarm {
        Alarm::of(&self.notices)
    }

    unsafe fn exchange(&mut self, memory: FlatMemory) -> Result<Box<dyn Exchange>, CommError> {
        let Neighbours { before, read_by_next, readers } = Neighbours::find(self, memory)?;
        let comm = self.collective("exchange", 0, |comm| {
            let mut own = comm;
            // SAFETY: a valid communicator; the copy gets its error handler as well.
            check(unsafe { ffi::MPI_Comm_dup(comm, &raw mut own) }).map(|()| own)
        })?;
        let ring = Ring { comm, rank: self.rank, world_size: self.world_size, read_by_next };
        // SAFETY: the caller's promise, and the communicator is new.
        let exchange =
            unsafe { MpiExchange::start(ring, before, readers, memory, Arc::clone(&self.watchdog))? };
        Ok(Box::new(exchange))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        CONNECTED.store(false, Ordering::SeqCst);
    }
}

/// Initialises MPI, which waits for all ranks. Ends this process if one of them does not come in time: it may hang before it has
/// anything that others could notice.
fn meet(env: &LaunchEnv, timeout: Duration) -> Result<(Universe, mpi::Threading), CommError> {
    let LaunchEnv { rank, world_size, .. } = *env;
    let (met, waits) = channel::<()>();
    let end_if_alone = move || {
        if waits.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            complain!(
                "error: rank {rank} has waited {timeout:?} for the other {} to connect \
                 (trainer.collective_timeout_secs): one of them hangs or was not started",
                world_size - 1
            );
            // SAFETY: always possible. MPI_Abort is not before MPI is there, and what runs at an ordinary exit waits for it.
            unsafe { libc::_exit(exit::COMMUNICATION) };
        }
    };
    let deadline = std::thread::Builder::new().name("ilm-meet".into()).spawn(end_if_alone);
    deadline.map_err(|_| CommError::Start)?;
    // The watchdog may call MPI_Abort while the main thread is inside a collective.
    let connected = mpi::initialize_with_threading(mpi::Threading::Multiple);
    drop(met);
    connected.ok_or(CommError::Start)
}

/// Starts the thread that watches the deadlines and passes words between ranks.
fn watch(rank: usize, timeout: Duration, notices: &Arc<Mutex<Notices>>) -> std::io::Result<Watchdog> {
    let (looks, ends) = (Arc::clone(notices), Alarm::of(notices));
    let look = move || {
        let told = lock(&looks).look();
        if told {
            complain!("rank {rank}: another rank has waited too long, so all ranks report");
            report(rank);
        }
    };
    let end = move |message: &str| {
        complain!("error: {message}");
        ends.sound(rank);
        abort_process(exit::COMMUNICATION);
    };
    Watchdog::start(rank, timeout, look, end)
}

/// A borrowed buffer as MPI wants it.
struct RawBuffer {
    start: *mut c_void,
    len: usize,
    element_bytes: usize,
    datatype: ffi::MPI_Datatype,
}

impl RawBuffer {
    fn of(data: Buffer<'_>) -> Self {
        let (len, element_bytes) = (data.len(), data.element_bytes());
        // SAFETY: constants that MPI sets up at initialisation, which has happened.
        let (float, double) = unsafe { (ffi::RSMPI_FLOAT, ffi::RSMPI_DOUBLE) };
        let (start, datatype) = match data {
            Buffer::F32(data) => (data.as_mut_ptr().cast(), float),
            Buffer::F64(data) => (data.as_mut_ptr().cast(), double),
        };
        Self { start, len, element_bytes, datatype }
    }

    fn bytes(&self) -> usize {
        self.len * self.element_bytes
    }

    /// (address, elements) of consecutive pieces of at most `piece_bytes`.
    fn pieces(&self, piece_bytes: usize) -> impl Iterator<Item = (*mut c_void, c_int)> + '_ {
        let step = piece_bytes / self.element_bytes;
        (0..self.len).step_by(step).map(move |begin| {
            let count = step.min(self.len - begin);
            (self.start.wrapping_byte_add(begin * self.element_bytes), count as c_int)
        })
    }
}

fn reduction(op: ReduceOp) -> ffi::MPI_Op {
    // SAFETY: constants that MPI sets up at initialisation, which has happened.
    unsafe {
        match op {
            ReduceOp::Sum => ffi::RSMPI_SUM,
            ReduceOp::Max => ffi::RSMPI_MAX,
        }
    }
}

pub(super) fn check(code: c_int) -> Result<(), c_int> {
    if code == ffi::MPI_SUCCESS as c_int { Ok(()) } else { Err(code) }
}

pub(super) fn error_text(code: c_int) -> String {
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: `text` has the length that MPI asks for.
    let status = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    match check(status) {
        Ok(()) => String::from_utf8_lossy(&text[..(length as usize).min(text.len())]).into_owned(),
        Err(_) => format!("error code {code}"),
    }
}

/// Ends the process with `code`; if it is connected to others, ends them too.
///
/// A rank that just exits (or unwinds into MPI_Finalize) would leave the others waiting for ever.
pub fn abort_process(code: i32) -> ! {
    vitals::close();
    if CONNECTED.load(Ordering::SeqCst) {
        // SAFETY: MPI is initialised and not finalised, and was given thread support for calls from any thread.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    }
    std::process::exit(code)
}

/// Makes a panic in any thread end all ranks, after its message is printed; a panic that the data pipeline turns into
/// an error passes.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if data_pipeline::panic_becomes_error() {
            return;
        }
        print(info);
        abort_process(exit::PANIC);
    }));
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(8), "a piece holds whole elements");
