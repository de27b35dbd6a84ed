//! Requests to stop: signals (SIGTERM, SIGINT, SIGUSR1 unless told otherwise) ask for a checkpoint and a clean end.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::{SigId, flag, low_level};

/// Environment variable: seconds from the signal to the end by force. A batch script that knows them sets it.
pub const LEAD_VARIABLE: &str = "ILM_STOP_LEAD_SECS";

/// Environment variable that `ilm-launch` sets for its ranks: it passes every request on as SIGUSR1, so that one always counts.
pub const BY_USR1_VARIABLE: &str = "ILM_STOP_BY_USR1";

/// A signal that may ask to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    /// From schedulers and `kill`.
    Term,
    /// From the keyboard; a second one ends the process at once.
    Int,
    /// From `ilm-launch`: mpirun passes it on and, unlike after SIGTERM, lets the ranks live.
    Usr1,
    /// Free for schedulers.
    Usr2,
    /// From a terminal that goes away.
    Hup,
}

impl StopSignal {
    /// Those that count before the configuration is read, and unless it says otherwise.
    pub const USUAL: [Self; 3] = [Self::Term, Self::Int, Self::Usr1];

    const ALL: [Self; 5] = [Self::Term, Self::Int, Self::Usr1, Self::Usr2, Self::Hup];

    fn number(self) -> c_int {
        match self {
            Self::Term => SIGTERM,
            Self::Int => SIGINT,
            Self::Usr1 => SIGUSR1,
            Self::Usr2 => SIGUSR2,
            Self::Hup => SIGHUP,
        }
    }
}

/// Set by a signal, or by another rank that got one; read wherever work can be left.
#[derive(Clone)]
pub struct StopRequest(Arc<Inner>);

struct Inner {
    set: AtomicBool,
    /// When it was set first, in milliseconds after `born`, plus 1.
    at: AtomicU64,
    born: Instant,
    /// From then to the end by force.
    lead: Option<Duration>,
}

impl Default for StopRequest {
    fn default() -> Self {
        Self::with_lead(None)
    }
}

impl fmt::Debug for StopRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StopRequest").field(&self.is_set()).finish()
    }
}

impl StopRequest {
    /// Not set yet; `lead` is the time from a request to the end by force.
    pub fn with_lead(lead: Option<Duration>) -> Self {
        Self(Arc::new(Inner {
            set: AtomicBool::new(false),
            at: AtomicU64::new(0),
            born: Instant::now(),
            lead,
        }))
    }

    /// From now on the [usual](StopSignal::USUAL) signals set it.
    ///
    /// A second SIGTERM changes nothing: Slurm may send one to the same process twice, and it kills by itself when patience ends.
    ///
    /// # Errors
    /// If the operating system refuses the handlers.
    pub fn install() -> io::Result<Signals> {
        let lead = std::env::var(LEAD_VARIABLE).ok().and_then(|secs| secs.trim().parse().ok());
        let request = Self::with_lead(lead.map(Duration::from_secs));
        let mut signals = Signals { request, interrupted: Arc::default(), actions: Vec::new() };
        signals.listen_to(&StopSignal::USUAL)?;
        Ok(signals)
    }

    /// Whether a signal has come.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Relaxed)
    }

    /// Sets it, as a signal does.
    pub fn set(&self) {
        // Only numbers are stored and the clock is read, as befits a signal handler.
        let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let _ = self.0.at.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.0.set.store(true, Ordering::Relaxed);
    }

    /// How long this process has left, if it was told to stop and [`LEAD_VARIABLE`] says how long that gives it.
    pub fn time_left(&self) -> Option<Duration> {
        let at = self.0.at.load(Ordering::Relaxed).checked_sub(1)?;
        let end = Duration::from_millis(at) + self.0.lead?;
        Some(end.saturating_sub(self.0.born.elapsed()))
    }
}

/// The handlers of a process.
pub struct Signals {
    request: StopRequest,
    /// Whether SIGINT has come: the request may be another signal's or another rank's, and then the first one still saves.
    interrupted: Arc<AtomicBool>,
    actions: Vec<(StopSignal, SigId)>,
}

impl Signals {
    /// From now on exactly these signals ask to stop, and SIGUSR1 where [`BY_USR1_VARIABLE`] is set; others do what they usually do.
    ///
    /// # Errors
    /// If the operating system refuses the handlers.
    pub fn listen_to(&mut self, wanted: &[StopSignal]) -> io::Result<()> {
        let by_launcher = std::env::var_os(BY_USR1_VARIABLE).is_some();
        for signal in StopSignal::ALL {
            let (number, listens) = (signal.number(), self.actions.iter().any(|(other, _)| *other == signal));
            let is_wanted = wanted.contains(&signal) || (signal == StopSignal::Usr1 && by_launcher);
            if is_wanted == listens {
                continue;
            }
            if listens {
                // The usual effect first: between the two the signal would be lost.
                flag::register_conditional_default(number, Arc::new(AtomicBool::new(true)))?;
                for (_, action) in self.actions.extract_if(.., |(other, _)| *other == signal) {
                    low_level::unregister(action);
                }
                continue;
            }
            if signal == StopSignal::Int {
                let seen = || Arc::clone(&self.interrupted);
                // In this order, or the first one would be taken for the second.
                self.actions
                    .push((signal, flag::register_conditional_shutdown(number, 128 + number, seen())?));
                self.actions.push((signal, flag::register(number, seen())?));
            }
            let request = self.request.clone();
            // SAFETY: the action stores numbers and reads the clock, which a signal handler may do.
            self.actions.push((signal, unsafe { low_level::register(number, move || request.set()) }?));
        }
        Ok(())
    }

    /// What they set.
    pub fn request(&self) -> StopRequest {
        self.request.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_counts_from_the_first_request() {
        let request = StopRequest::with_lead(Some(Duration::from_secs(1000)));
        assert_eq!((request.is_set(), request.time_left()), (false, None));
        request.set();
        let left = request.time_left().unwrap();
        assert!(left <= Duration::from_secs(1000) && left > Duration::from_secs(900), "{left:?}");
        std::thread::sleep(Duration::from_millis(5));
        request.clone().set();
        assert!(request.time_left().unwrap() < left, "a second request gives no more time");
        let unknown = StopRequest::default();
        unknown.set();
        assert_eq!((unknown.is_set(), unknown.time_left()), (true, None));
        let over = StopRequest::with_lead(Some(Duration::ZERO));
        over.set();
        assert_eq!(over.time_left(), Some(Duration::ZERO));
    }

    #[test]
    fn other_signals_can_be_chosen() {
        let mut signals = StopRequest::install().unwrap();
        signals.listen_to(&[StopSignal::Usr2]).unwrap();
        let request = signals.request();
        low_level::raise(SIGUSR2).unwrap();
        assert!(request.is_set());
        assert_eq!(serde_json::to_string(&StopSignal::USUAL).unwrap(), r#"["TERM","INT","USR1"]"#);
    }
}
