//! A thread that announces the rows of coming jobs to the data set, so that slow storage is read before it is waited for.

use std::{collections::HashSet, sync::Arc, thread::JoinHandle};

use crossbeam_channel::{Receiver, bounded};

use crate::{
    dataset::Dataset,
    error::{Error, Result},
    prefetch::part_from,
};

/// The announcing thread; it ends when all tickets are dropped, and dropping it waits a moment for that.
pub(crate) struct ReadAhead {
    tickets: Option<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The right to do jobs that have been announced; the thread runs ahead by the tickets that were not taken yet.
#[derive(Clone)]
pub(crate) struct Tickets(Option<Receiver<()>>);

impl Tickets {
    /// Waits until another job is announced. Without a thread, or when it has ended, there is nothing to wait for.
    pub fn wait(&self) {
        if let Some(tickets) = &self.0 {
            let _ = tickets.recv();
        }
    }
}

impl ReadAhead {
    /// Starts the thread, `steps` jobs ahead of those that took a ticket; 0 starts none. Of the rows of a job one of each
    /// group is announced.
    pub fn spawn<J>(
        dataset: Arc<dyn Dataset>,
        jobs: impl Iterator<Item = J> + Send + 'static,
        steps: usize,
        rows: impl Fn(J) -> Vec<u64> + Send + 'static,
    ) -> Result<Self> {
        if steps == 0 {
            return Ok(Self { tickets: None, thread: None });
        }
        let (sender, tickets) = bounded(steps);
        let work = move || {
            let groups = GroupStarts::new(dataset.groups());
            for job in jobs {
                dataset.read_ahead(&groups.first_of_each(rows(job)));
                if sender.send(()).is_err() {
                    return;
                }
            }
        };
        let builder = std::thread::Builder::new().name("ilm-data-ahead".into());
        let thread = builder.spawn(work).map_err(Error::Thread)?;
        Ok(Self { tickets: Some(tickets), thread: Some(thread) })
    }

    /// Tickets for the threads that do the jobs; all of them together take one a job.
    pub fn tickets(&self) -> Tickets {
        Tickets(self.tickets.clone())
    }

    /// Leaves the thread to itself: it may wait for others that hang.
    pub fn leave(&mut self) {
        self.tickets = None;
        self.thread = None;
    }

    /// Announced jobs that nobody has begun.
    pub fn announced(&self) -> usize {
        self.tickets.as_ref().map_or(0, Receiver::len)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.tickets = None;
        part_from(self.thread.take());
    }
}

/// First row of every group.
struct GroupStarts(Vec<u64>);

impl GroupStarts {
    fn new(groups: &[u64]) -> Self {
        let starts = groups.iter().scan(0u64, |start, rows| {
            let this = *start;
            *start = start.saturating_add(*rows);
            Some(this)
        });
        Self(starts.collect())
    }

    /// The rows that are the first of their group, in the order given.
    fn first_of_each(&self, mut rows: Vec<u64>) -> Vec<u64> {
        let mut seen = HashSet::new();
        rows.retain(|&row| seen.insert(self.0.partition_point(|&start| start <= row)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::dataset::Example;

    /// Keeps what is announced.
    struct Told(Mutex<Vec<Vec<u64>>>);

    impl Dataset for Told {
        fn len(&self) -> u64 {
            30
        }
        fn groups(&self) -> &[u64] {
            &[10, 0, 10, 10]
        }
        fn example(&self, _: u64) -> Result<Option<Example>> {
            Ok(None)
        }
        fn read_ahead(&self, rows: &[u64]) {
            self.0.lock().unwrap().push(rows.to_vec());
        }
        fn fingerprint(&self) -> &str {
            "told"
        }
    }

    #[test]
    fn announces_a_bounded_number_of_jobs_once_a_group() {
        let told = Arc::new(Told(Mutex::default()));
        let rows = |job: u64| vec![job, 12, 3, 29, 15, 20];
        let ahead = ReadAhead::spawn(told.clone(), 0..100, 4, rows).unwrap();
        let tickets = ahead.tickets();
        for _ in 0..10 {
            tickets.wait();
        }
        while ahead.announced() < 4 {
            std::thread::yield_now();
        }
        drop(tickets);
        drop(ahead);
        let told = told.0.lock().unwrap();
        // Ten done, four announced, one that waits for room.
        assert!((14..=15).contains(&told.len()), "{}", told.len());
        assert_eq!(told[2], [2, 12, 29]);
    }

    #[test]
    fn dropping_waits_for_no_tickets_that_others_hold() {
        let told = Arc::new(Told(Mutex::default()));
        let ahead = ReadAhead::spawn(told, 0..100u64, 1, |_| vec![1]).unwrap();
        let tickets = ahead.tickets();
        drop(ahead);
        tickets.wait();
    }

    #[test]
    fn every_job_has_a_ticket_and_the_end_stops_no_one() {
        let told = Arc::new(Told(Mutex::default()));
        for steps in [0, 1, 100] {
            let ahead = ReadAhead::spawn(told.clone(), 0..20u64, steps, |_| vec![1]).unwrap();
            let tickets = ahead.tickets();
            (0..30).for_each(|_| tickets.wait());
            drop(tickets);
        }
        assert_eq!(told.0.lock().unwrap().len(), 40);
    }
}
