//! What this rank is doing: phase, step and collectives, noted where it costs nothing and where others can read it.
//!
//! A process is one rank, so there is one place for it. The thread that trains only stores numbers; everything goes at once into
//! the flight record, a mapped file that outlives the process, and about once a second from a thread of its own into the
//! heartbeat, for which the launcher watches.

mod flight;
mod pulse;
mod stacks;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub use self::flight::Flight;
pub use self::pulse::{attach, attach_unless_taken};
pub use self::stacks::Stacks;

/// What a rank is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Everything before the first step or batch.
    Start,
    /// Waiting for data.
    Data,
    /// A training step.
    Train,
    /// Measuring the model between two training steps.
    Validate,
    /// Writing or committing a checkpoint while training stands still.
    Save,
    /// Measuring a checkpoint.
    Evaluate,
    /// Making texts.
    Generate,
    /// All is done; waiting for the others to be as well.
    End,
}

impl Phase {
    /// All phases, each at the place of its number.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Data,
        Self::Train,
        Self::Validate,
        Self::Save,
        Self::Evaluate,
        Self::Generate,
        Self::End,
    ];

    /// As the launcher shows it; at most 16 bytes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Data => "data",
            Self::Train => "train",
            Self::Validate => "validate",
            Self::Save => "save",
            Self::Evaluate => "evaluate",
            Self::Generate => "generate",
            Self::End => "end",
        }
    }
}

/// A collective operation of this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number among all collectives of this rank; the same on every rank, since ranks begin the same ones in the same order.
    pub number: u64,
    /// Bytes that this rank puts in.
    pub bytes: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "collective '{}' (number {}, {} bytes)", self.name, self.number, self.bytes)
    }
}

/// Where a rank is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it does.
    pub phase: Phase,
    /// Finished optimizer steps.
    pub step: u64,
    /// The collective that was begun last.
    pub last: Option<Call>,
    /// Whether the thread that trains stands still for other ranks.
    pub waits: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {}, step {}", self.phase.name(), self.step)?;
        if let Some(call) = self.last {
            write!(f, ", last {call}")?;
        }
        f.write_str(if self.waits { ", waiting for other ranks" } else { ", at work itself" })
    }
}

struct Vitals {
    phase: AtomicU8,
    step: AtomicU64,
    calls: AtomicU64,
    last: Mutex<Option<Call>>,
    /// Threads that stand still for other ranks.
    waiting: AtomicU32,
    /// Grows with every sign of life.
    signs: AtomicU64,
    flight: OnceLock<Flight>,
    /// Whether nothing is noted any more.
    closed: AtomicBool,
}

static VITALS: Vitals = Vitals {
    phase: AtomicU8::new(Phase::Start as u8),
    step: AtomicU64::new(0),
    calls: AtomicU64::new(0),
    last: Mutex::new(None),
    waiting: AtomicU32::new(0),
    signs: AtomicU64::new(0),
    flight: OnceLock::new(),
    closed: AtomicBool::new(false),
};

/// Enters a phase, until the result is dropped.
pub fn phase(phase: Phase) -> PhaseGuard {
    let before = VITALS.phase.swap(phase as u8, Ordering::Relaxed);
    VITALS.note(flight::PLACE, None);
    PhaseGuard { before }
}

/// A phase that goes on; the one before it is entered again afterwards, unless all is done.
#[must_use = "the phase ends when this is dropped"]
#[derive(Debug)]
pub struct PhaseGuard {
    before: u8,
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        if VITALS.phase() == Phase::End {
            return;
        }
        VITALS.phase.store(self.before, Ordering::Relaxed);
        VITALS.note(flight::PLACE, None);
    }
}

/// All is done: from now on this rank only waits for the others.
pub fn end() {
    VITALS.phase.store(Phase::End as u8, Ordering::Relaxed);
    VITALS.note(flight::PLACE, None);
}

/// Sets the number of finished optimizer steps.
pub fn step(step: u64) {
    VITALS.step.store(step, Ordering::Relaxed);
    VITALS.note(flight::PLACE, None);
}

/// A sign of life within a phase: a batch or an insertion is done.
pub fn tick() {
    VITALS.signs.fetch_add(1, Ordering::Relaxed);
}

/// Begins a collective and gives it its number. To be called on the thread that trains, for the numbers to agree.
pub fn begin(name: &'static str, bytes: usize) -> Call {
    let call = Call { name, number: VITALS.calls.fetch_add(1, Ordering::Relaxed), bytes };
    *lock(&VITALS.last) = Some(call);
    VITALS.note(flight::BEGUN, Some(call));
    call
}

/// The collective is complete.
pub fn ended(call: Call) {
    VITALS.note(flight::ENDED, Some(call));
}

/// Says that this thread stands still for other ranks, until the result is dropped.
pub fn wait_for_others() -> WaitGuard {
    VITALS.waiting.fetch_add(1, Ordering::Relaxed);
    WaitGuard(())
}

/// A wait for other ranks that goes on.
#[must_use = "the wait ends when this is dropped"]
#[derive(Debug)]
pub struct WaitGuard(());

impl Drop for WaitGuard {
    fn drop(&mut self) {
        VITALS.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leaves heartbeat and flight record as they are: this rank is about to end all ranks, and a stopped one is let go on for a
/// moment then, which would hide that the others have waited for it.
pub fn close() {
    VITALS.closed.store(true, Ordering::Relaxed);
}

/// Where this rank is.
pub fn place() -> Place {
    Place {
        phase: VITALS.phase(),
        step: VITALS.step.load(Ordering::Relaxed),
        last: *lock(&VITALS.last),
        waits: VITALS.waiting.load(Ordering::Relaxed) > 0,
    }
}

impl Vitals {
    fn phase(&self) -> Phase {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(number).copied().unwrap_or(Phase::Start)
    }

    fn note(&self, kind: u8, call: Option<Call>) {
        self.signs.fetch_add(1, Ordering::Relaxed);
        if let Some(flight) = self.flight.get().filter(|_| !self.closed.load(Ordering::Relaxed)) {
            flight.note(kind, self.phase.load(Ordering::Relaxed), self.step.load(Ordering::Relaxed), call);
        }
    }
}

/// The state is plain data, so it is sound to go on after a panic elsewhere.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_nest_and_their_names_fit_the_record() {
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, number);
            assert!(phase.name().len() <= flight::PHASE_BYTES);
        }
        let outer = phase(Phase::Train);
        let inner = phase(Phase::Save);
        assert_eq!(place().phase, Phase::Save);
        drop(inner);
        assert_eq!(place().phase, Phase::Train);
        drop(outer);
        let wait = wait_for_others();
        assert!(place().waits);
        drop(wait);
        let place = Place { phase: Phase::Save, step: 3, last: None, waits: true };
        assert_eq!(place.to_string(), "phase save, step 3, waiting for other ranks");
    }
}
