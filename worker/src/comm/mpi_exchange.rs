//! The exchange on host memory: a communication thread per rank, which alone speaks on a communicator of its own.
//!
//! Blocking collectives would spin and take the processor from the computation, so the thread polls and sleeps in between,
//! while nobody waits for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::{Awaited, Engine, Order};
use super::neighbour::Neighbour;
use super::ring::Ring;
use super::watchdog::Watchdog;
use super::{CommError, Exchange, ExchangeOp, FlatMemory};
use crate::vitals;

/// The calling thread's end.
pub(super) struct MpiExchange {
    /// None once the thread is to end.
    orders: Option<Sender<Order>>,
    replies: Receiver<Result<(), CommError>>,
    hurry: Arc<AtomicBool>,
    watchdog: Arc<Watchdog>,
    thread: Option<JoinHandle<()>>,
    memory: FlatMemory,
    world_size: usize,
    /// Ranks that read the memory of the one before them.
    readers: usize,
}

impl MpiExchange {
    /// Starts the thread.
    ///
    /// # Safety
    /// `memory` outlives the exchange, its users keep the promise of [`Exchange`], and nobody else uses `ring.comm`.
    pub(super) unsafe fn start(
        ring: Ring,
        before: Option<Neighbour>,
        readers: usize,
        memory: FlatMemory,
        watchdog: Arc<Watchdog>,
    ) -> Result<Self, CommError> {
        let (orders, their_orders) = channel();
        let (their_replies, replies) = channel();
        let hurry = Arc::new(AtomicBool::new(false));
        // SAFETY: the caller's promise; the thread ends when this value is dropped.
        let engine = unsafe { Engine::new(ring, before, memory, Arc::clone(&watchdog), Arc::clone(&hurry)) };
        let thread = std::thread::Builder::new()
            .name("ilm-exchange".into())
            .spawn(move || engine.run(&their_orders, &their_replies))
            .map_err(|_| CommError::Start)?;
        Ok(Self {
            orders: Some(orders),
            replies,
            hurry,
            watchdog,
            thread: Some(thread),
            memory,
            world_size: ring.world_size,
            readers,
        })
    }

    fn order(&self, order: Order) -> Result<(), CommError> {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        // The thread has ended after a failure, which it told before.
        sent.and_then(Result::ok).ok_or_else(|| match self.replies.try_recv() {
            Ok(Err(error)) => error,
            _ => CommError::Closed,
        })
    }
}

impl Exchange for MpiExchange {
    fn begin(&mut self, name: &'static str, op: ExchangeOp, range: Range<usize>) -> Result<(), CommError> {
        let words = self.memory.words(name, op, &range, self.world_size)?;
        if range.is_empty() {
            return Ok(());
        }
        let call = self.watchdog.begin(name, words.len * size_of::<f32>());
        self.order(Order::Begin(call, op, range)).inspect_err(|_| self.watchdog.leave(call))
    }

    fn finish(&mut self) -> Result<Duration, CommError> {
        self.wait(Awaited::Everything)
    }

    fn wait_for(&mut self, range: Range<usize>) -> Result<Duration, CommError> {
        self.wait(Awaited::Gathered(range))
    }

    fn describe(&self) -> String {
        match self.readers {
            0 => "messages of MPI".to_owned(),
            readers if readers == self.world_size => {
                "memory of the rank before, which is on this host".to_owned()
            }
            readers => {
                format!("messages of MPI; {readers} ranks read the memory of the one before, on their host")
            }
        }
    }
}

impl MpiExchange {
    fn wait(&mut self, awaited: Awaited) -> Result<Duration, CommError> {
        let started = Instant::now();
        let _waits = vitals::wait_for_others();
        self.hurry.store(true, Ordering::Relaxed);
        self.order(Order::Wait(awaited))?;
        let reply = self.replies.recv().map_err(|_| CommError::Closed)?;
        self.hurry.store(false, Ordering::Relaxed);
        if reply.is_err() {
            // The thread ends; nothing can be begun any more.
            self.orders = None;
        }
        reply.map(|()| started.elapsed())
    }
}

/// Waits for what is under way, as its memory may go away afterwards; the deadline bounds that wait.
impl Drop for MpiExchange {
    fn drop(&mut self) {
        self.hurry.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has ended the process already.
            let _ = thread.join();
        }
    }
}
