//! Words that ranks pass on beside their collectives: that one was told to stop, and that one waits in vain.
//!
//! A rank may be in any phase when it has something to say, and so may those that should hear it. So the watchdog's thread of
//! every rank looks for messages several times a second, on a communicator of its own. Who hears a word for the first time says it to
//! the ranks 1, 2, 4, 8 .. further on: after few looks all know it, and nobody sends more than a few messages.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mpi::ffi;

use super::mpi::check;
use super::watchdog::{GRACE, report};
use crate::signals::StopRequest;

/// What can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A rank was told to stop.
    Stop,
    /// A rank has waited too long: all say what they do.
    Report,
}

impl Word {
    const ALL: [Self; 2] = [Self::Stop, Self::Report];
}

/// Makes all ranks report where they are, from any thread: whoever holds the others up may still be able to say why.
#[derive(Clone, Default)]
pub struct Alarm(Option<Arc<Mutex<Notices>>>);

impl Alarm {
    pub(super) fn of(notices: &Arc<Mutex<Notices>>) -> Self {
        Self(Some(Arc::clone(notices)))
    }

    /// Returns when all have had time to report; `rank` is this one.
    pub(super) fn sound(&self, rank: usize) {
        if let Some(notices) = &self.0 {
            lock(notices).say(Word::Report);
        }
        report(rank);
        std::thread::sleep(GRACE);
    }
}

pub(super) fn lock(notices: &Mutex<Notices>) -> MutexGuard<'_, Notices> {
    notices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One rank's part.
pub(super) struct Notices {
    comm: ffi::MPI_Comm,
    rank: usize,
    world_size: usize,
    stop: Option<StopRequest>,
    /// Whether this rank has said each of the words.
    said: [bool; Word::ALL.len()],
}

// SAFETY: the communicator is this value's own, whoever has the value is the only one to use it, and MPI gives thread support
// 'multiple'.
unsafe impl Send for Notices {}

impl Notices {
    /// Between the ranks of `comm`; all ranks call it together.
    pub(super) fn new(comm: ffi::MPI_Comm, rank: usize, world_size: usize) -> Result<Self, c_int> {
        let mut own = comm;
        // SAFETY: a valid communicator; the copy gets its error handler as well.
        check(unsafe { ffi::MPI_Comm_dup(comm, &raw mut own) })?;
        Ok(Self { comm: own, rank, world_size, stop: None, said: [false; Word::ALL.len()] })
    }

    /// Passes on this rank's requests to stop, and sets it when another rank got one.
    pub(super) fn share(&mut self, stop: &StopRequest) {
        self.stop = Some(stop.clone());
    }

    /// Hears and passes on what there is; whether this rank now hears for the first time that it shall report.
    pub(super) fn look(&mut self) -> bool {
        if self.stop.as_ref().is_some_and(StopRequest::is_set) {
            self.say(Word::Stop);
        }
        let mut report = false;
        for word in Word::ALL {
            while self.receive(word) {
                report |= word == Word::Report && !self.said[word as usize];
                if let (Word::Stop, Some(stop)) = (word, &self.stop) {
                    stop.set();
                }
                self.say(word);
            }
        }
        report
    }

    /// Says a word, once.
    pub(super) fn say(&mut self, word: Word) {
        if std::mem::replace(&mut self.said[word as usize], true) {
            return;
        }
        let distances = std::iter::successors(Some(1), |distance| Some(2 * distance));
        for distance in distances.take_while(|distance| *distance < self.world_size) {
            let to = ((self.rank + distance) % self.world_size) as c_int;
            // SAFETY: an empty message needs no memory, and the request is given back at once. An error means that MPI is lost,
            // which the collectives tell.
            unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let byte = ffi::RSMPI_UINT8_T;
                let sent =
                    ffi::MPI_Isend(std::ptr::null(), 0, byte, to, word as c_int, self.comm, &raw mut request);
                if check(sent).is_ok() {
                    ffi::MPI_Request_free(&raw mut request);
                }
            }
        }
    }

    /// Takes one message of this word, if there is one.
    fn receive(&self, word: Word) -> bool {
        let mut there: c_int = 0;
        // SAFETY: the communicator is ours, and an empty message needs no memory.
        unsafe {
            let (any, tag, ignore) = (ffi::RSMPI_ANY_SOURCE, word as c_int, ffi::RSMPI_STATUS_IGNORE);
            let probed = ffi::MPI_Iprobe(any, tag, self.comm, &raw mut there, ignore);
            check(probed).is_ok()
                && there != 0
                && check(ffi::MPI_Recv(
                    std::ptr::null_mut(),
                    0,
                    ffi::RSMPI_UINT8_T,
                    any,
                    tag,
                    self.comm,
                    ignore,
                ))
                .is_ok()
        }
    }
}
