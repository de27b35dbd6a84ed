//! Requests to stop: SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and a clean end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Set by a signal, read between steps.
#[derive(Debug, Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// From now on a signal sets the flag; a second SIGINT, from a person who will not wait, ends the process at once.
    ///
    /// SIGUSR1 is there because mpirun forwards it and, unlike after SIGTERM, lets the ranks live. A second SIGTERM
    /// changes nothing: Slurm may send one to the same process twice, and it kills by itself when patience ends.
    ///
    /// # Errors
    /// If the operating system refuses the handlers.
    pub fn install() -> std::io::Result<Self> {
        let request = Self::default();
        flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, Arc::clone(&request.0))?;
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            flag::register(signal, Arc::clone(&request.0))?;
        }
        Ok(request)
    }

    /// Whether a signal has come.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
