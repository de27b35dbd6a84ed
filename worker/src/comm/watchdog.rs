//! The deadline of collectives: a thread that ends the job when a collective takes longer than allowed.
//!
//! A peer that died or hangs leaves the others inside an MPI call that never returns, so only another thread can speak.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One collective that has begun and not ended.
#[derive(Debug, Clone)]
struct InFlight {
    id: u64,
    name: &'static str,
    sequence: u64,
    bytes: usize,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they began.
    in_flight: Vec<InFlight>,
    next_id: u64,
    stop: bool,
}

/// Watches the collectives of one rank.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// `on_expiry` gets one sentence on what this rank waits for; it must end the process.
    pub(super) fn start(
        rank: usize,
        timeout: Duration,
        on_expiry: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ilm-watchdog".into()).spawn(move || {
            if let Some(late) = wait_for_expiry(&theirs, timeout) {
                on_expiry(&format!(
                    "rank {rank} has waited {:.0} s in collective '{}' (number {}, {} bytes) for another rank; \
                     trainer.collective_timeout_secs allows {} s",
                    late.since.elapsed().as_secs_f64(),
                    late.name,
                    late.sequence,
                    late.bytes,
                    timeout.as_secs(),
                ));
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins to watch a collective; the result is what to end it by.
    pub(super) fn begin(&self, name: &'static str, sequence: u64, bytes: usize) -> u64 {
        let mut state = lock(&self.shared.0);
        let id = state.next_id;
        state.next_id += 1;
        state.in_flight.push(InFlight { id, name, sequence, bytes, since: Instant::now() });
        id
    }

    /// The collective is complete.
    pub(super) fn end(&self, id: u64) {
        lock(&self.shared.0).in_flight.retain(|call| call.id != id);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.shared.0).stop = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread only fails to join if it panicked, and then there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// Blocks until a collective is overdue (the oldest is returned) or the watchdog is dropped (none).
fn wait_for_expiry(shared: &(Mutex<State>, Condvar), timeout: Duration) -> Option<InFlight> {
    let poll = (timeout / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut state = lock(&shared.0);
    while !state.stop {
        if let Some(late) = state.in_flight.first().filter(|call| call.since.elapsed() > timeout) {
            return Some(late.clone());
        }
        state = shared.1.wait_timeout(state, poll).unwrap_or_else(PoisonError::into_inner).0;
    }
    None
}

/// The state is plain data, so it is sound to go on after a panic elsewhere.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_oldest_of_the_late_collectives_is_named() {
        let (send, receive) = mpsc::channel();
        let watchdog = Watchdog::start(3, Duration::from_millis(20), move |message| {
            send.send(message.to_string()).expect("the test waits for the message");
        })
        .expect("a thread can be started");
        let complete = watchdog.begin("flags", 6, 8);
        watchdog.begin("gradients", 7, 1024);
        watchdog.begin("gradients", 8, 2048);
        watchdog.end(complete);
        let message = receive.recv_timeout(Duration::from_secs(30)).expect("the watchdog reports");
        assert!(message.contains("rank 3"), "{message}");
        assert!(message.contains("'gradients' (number 7, 1024 bytes)"), "{message}");
    }

    #[test]
    fn a_finished_collective_is_not() {
        let (send, receive) = mpsc::channel();
        let watchdog = Watchdog::start(0, Duration::from_millis(20), move |_| {
            let _ = send.send(());
        })
        .expect("a thread can be started");
        let id = watchdog.begin("gradients", 0, 4);
        watchdog.end(id);
        assert!(receive.recv_timeout(Duration::from_millis(200)).is_err());
        drop(watchdog);
    }
}
