//! The deadline of collectives: a thread that ends the job when a collective takes longer than allowed.
//!
//! A peer that died or hangs leaves the others inside an MPI call that never returns, so only another thread can speak.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::complain;
use crate::vitals::{self, Call, Stacks};

/// How long a rank that ends the job leaves to others for their reports.
pub(super) const GRACE: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
struct State {
    /// Collectives that have begun and not ended, in the order in which they began.
    in_flight: Vec<(Call, Instant)>,
    stop: bool,
}

/// Watches the collectives of one rank.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// `look` is called several times a second. `on_expiry` gets one sentence on what this rank waits for; it must end the process.
    pub(super) fn start(
        rank: usize,
        timeout: Duration,
        look: impl FnMut() + Send + 'static,
        on_expiry: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ilm-watchdog".into()).spawn(move || {
            if let Some((late, since)) = wait_for_expiry(&theirs, timeout, look) {
                on_expiry(&format!(
                    "rank {rank} has waited {:.0} s in {late} for another rank; trainer.collective_timeout_secs allows {} s",
                    since.elapsed().as_secs_f64(),
                    timeout.as_secs(),
                ));
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins to watch a collective; to be called on the thread that trains.
    pub(super) fn begin(&self, name: &'static str, bytes: usize) -> Call {
        let call = vitals::begin(name, bytes);
        self.watch(call);
        call
    }

    /// Begins to watch a collective again that was left.
    pub(super) fn watch(&self, call: Call) {
        lock(&self.shared.0).in_flight.push((call, Instant::now()));
    }

    /// The collective is complete.
    pub(super) fn end(&self, call: Call) {
        self.leave(call);
        vitals::ended(call);
    }

    /// The collective goes on, and somebody else sees to it that it ends in time.
    pub(super) fn leave(&self, call: Call) {
        lock(&self.shared.0).in_flight.retain(|(other, _)| *other != call);
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

/// Writes to the log where this rank is and what each of its threads does.
pub(super) fn report(rank: usize) {
    complain!("rank {rank}: {}; the stacks of its threads:\n{}", vitals::place(), Stacks::take());
}

/// Blocks until a collective is overdue (the oldest is returned) or the watchdog is dropped (none).
fn wait_for_expiry(
    shared: &(Mutex<State>, Condvar),
    timeout: Duration,
    mut look: impl FnMut(),
) -> Option<(Call, Instant)> {
    let poll = (timeout / 10).clamp(Duration::from_millis(10), Duration::from_millis(100));
    let mut state = lock(&shared.0);
    while !state.stop {
        if let Some(late) = state.in_flight.first().filter(|(_, since)| since.elapsed() > timeout) {
            return Some(*late);
        }
        drop(state);
        look();
        state = lock(&shared.0);
        if !state.stop {
            state = shared.1.wait_timeout(state, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
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
        let on_expiry = move |message: &str| {
            send.send(message.to_string()).expect("the test waits for the message");
        };
        let watchdog = Watchdog::start(3, Duration::from_millis(20), || {}, on_expiry);
        let watchdog = watchdog.expect("a thread can be started");
        let complete = watchdog.begin("flags", 8);
        let oldest = watchdog.begin("gradients", 1024);
        watchdog.begin("gradients", 2048);
        watchdog.end(complete);
        let message = receive.recv_timeout(Duration::from_secs(30)).expect("the watchdog reports");
        assert!(message.contains("rank 3"), "{message}");
        let expected = format!("'gradients' (number {}, 1024 bytes)", oldest.number);
        assert!(message.contains(&expected), "{message}");
    }

    #[test]
    fn a_finished_collective_is_not() {
        let (send, receive) = mpsc::channel();
        let (looked, looks) = mpsc::channel();
        let look = move || {
            let _ = looked.send(());
        };
        let on_expiry = move |_: &str| {
            let _ = send.send(());
        };
        let watchdog = Watchdog::start(0, Duration::from_millis(20), look, on_expiry);
        let watchdog = watchdog.expect("a thread can be started");
        let ended = watchdog.begin("gradients", 4);
        watchdog.end(ended);
        let left = watchdog.begin("gradients", 4);
        watchdog.leave(left);
        (0..20).for_each(|_| looks.recv_timeout(Duration::from_secs(30)).expect("it looks again"));
        assert!(receive.try_recv().is_err());
        drop(watchdog);
    }
}
