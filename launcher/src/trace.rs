//! What the ranks of an attempt left behind about themselves, and which of them the others waited for.

use crate::flight::Flight;
use crate::heartbeat::{self, Heartbeat, unix_ms};
use std::path::Path;
use std::time::SystemTime;

/// Signs of life that are so many milliseconds apart do not tell ranks apart: heartbeats come about once a second.
const SAME_TIME_MS: u64 = 2000;

/// What is known of one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The rank.
    pub rank: usize,
    /// What it last said, up to a second before its end.
    pub heartbeat: Option<Heartbeat>,
    /// What it last did.
    pub flight: Option<Flight>,
}

impl Trace {
    /// Those of `ranks` ranks that began at `since` or later and left something, as it was at `until`, both in milliseconds since
    /// 1970. What a stopped rank did later says nothing: mpirun lets it go on before it ends it.
    pub fn read_all(run_dir: &Path, ranks: usize, since: u64, until: u64) -> Vec<Self> {
        let trace = |rank| {
            let in_time = |beat: &Heartbeat| beat.updated_unix_ms <= until;
            let heartbeat = heartbeat::read(run_dir, rank, since).filter(in_time);
            Self {
                rank,
                heartbeat: heartbeat.filter(|beat| !is_older(run_dir, beat, since)),
                flight: Flight::read(run_dir, rank, since, until),
            }
        };
        let left_something = |trace: &Self| trace.heartbeat.is_some() || trace.flight.is_some();
        (0..ranks).map(trace).filter(left_something).collect()
    }

    /// Where the rank was, in words: by its flight record, or by its heartbeat where that is newer, as it may be if the record lies
    /// on another machine and not all of it has come here.
    pub fn describe(&self, now: SystemTime) -> String {
        let ago = |ms: u64| unix_ms(now).saturating_sub(ms) as f64 / 1000.0;
        match (&self.flight, &self.heartbeat) {
            (Some(flight), beat) if beat.as_ref().is_none_or(|beat| !is_behind(flight, beat)) => {
                let host = beat.as_ref().map_or(String::new(), |beat| format!(" on {}", beat.host));
                format!("last record, {:.1} s ago{host}: {flight}", ago(flight.last_unix_ms))
            }
            (_, Some(beat)) => {
                format!("last heartbeat, {} s ago on {}: {beat}", beat.age(now).as_secs(), beat.host)
            }
            (_, None) => String::new(),
        }
    }

    /// How far it came: the number of its last collective, and its steps.
    fn progress(&self) -> (u64, u64) {
        let by_flight =
            self.flight.as_ref().map(|flight| (number(flight.last_collective.as_ref()), flight.step));
        let by_beat = self.heartbeat.as_ref().map(|beat| (number(beat.last_collective.as_ref()), beat.step));
        by_flight.max(by_beat).unwrap_or((0, 0))
    }

    /// Its last sign of life, in milliseconds since 1970.
    pub fn last_sign(&self) -> u64 {
        let by_flight = self.flight.as_ref().map_or(0, |flight| flight.last_unix_ms);
        by_flight.max(self.heartbeat.as_ref().map_or(0, |beat| beat.updated_unix_ms))
    }
}

/// Whether the process of a heartbeat began before `since`: that of a run beside which this attempt was made.
fn is_older(run_dir: &Path, beat: &Heartbeat, since: u64) -> bool {
    let is_of = |since| {
        Flight::read(run_dir, beat.rank, since, u64::MAX).is_some_and(|flight| flight.pid == beat.pid)
    };
    is_of(0) && !is_of(since)
}

/// The number of a collective, counted from 1; 0 before the first.
fn number(call: Option<&heartbeat::Collective>) -> u64 {
    call.map_or(0, |call| call.sequence.saturating_add(1))
}

fn is_behind(flight: &Flight, beat: &Heartbeat) -> bool {
    (number(flight.last_collective.as_ref()), flight.step)
        < (number(beat.last_collective.as_ref()), beat.step)
}

/// The rank that is furthest behind: the one that began the fewest collectives; among equals the one that fell silent clearly
/// before the others. None if they cannot be told apart.
pub fn furthest_behind(traces: &[Trace]) -> Option<&Trace> {
    let least = traces.iter().map(Trace::progress).min().filter(|_| traces.len() > 1)?;
    let mut last: Vec<&Trace> = traces.iter().filter(|trace| trace.progress() == least).collect();
    last.sort_by_key(|trace| trace.last_sign());
    match last[..] {
        [only] => Some(only),
        [first, second, ..] if second.last_sign() - first.last_sign() > SAME_TIME_MS => Some(first),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heartbeat::Collective;
    use std::time::{Duration, UNIX_EPOCH};

    fn call(sequence: u64) -> Option<Collective> {
        Some(Collective { name: "gradients".into(), sequence, bytes: 64 })
    }

    fn beat(rank: usize, sequence: u64, updated_unix_ms: u64) -> Heartbeat {
        let (phase, host) = ("train".into(), "node".into());
        let last_collective = call(sequence);
        Heartbeat { rank, pid: 1, host, phase, step: 7, last_collective, waits: false, updated_unix_ms }
    }

    fn flight(sequence: u64, last_unix_ms: u64) -> Flight {
        let last_collective = call(sequence);
        Flight { pid: 1, phase: "train".into(), step: 7, last_collective, inside: None, last_unix_ms }
    }

    fn trace(rank: usize, sequence: u64, at: u64) -> Trace {
        Trace { rank, heartbeat: Some(beat(rank, sequence, at)), flight: Some(flight(sequence, at)) }
    }

    #[test]
    fn the_rank_that_the_others_wait_for_is_found_if_there_is_one() {
        let behind = |traces: &[Trace]| furthest_behind(traces).map(|trace| trace.rank);
        assert_eq!(behind(&[trace(0, 8, 9000), trace(1, 7, 9500), trace(2, 8, 8000)]), Some(1));
        assert_eq!(behind(&[trace(0, 8, 9000), trace(1, 8, 5000), trace(2, 8, 8900)]), Some(1));
        assert_eq!(behind(&[trace(0, 8, 9000), trace(1, 8, 8500)]), None);
        assert_eq!((behind(&[]), behind(&[trace(3, 8, 9)])), (None, None));
        // The heartbeat is older than the record, of which nothing may have come from another machine.
        let mut late = trace(0, 8, 9000);
        late.heartbeat = Some(beat(0, 6, 8500));
        assert_eq!(behind(&[late, trace(1, 7, 9000)]), Some(1));
        let none = Trace { flight: None, ..trace(0, 8, 9000) };
        assert_eq!(behind(&[none, trace(1, 7, 9000)]), Some(1));
    }

    #[test]
    fn the_newer_of_record_and_heartbeat_is_told() {
        let now = UNIX_EPOCH + Duration::from_millis(9500);
        let mut trace = trace(0, 8, 9000);
        let place = "phase train, step 7, last collective gradients (number 8, 64 bytes)";
        assert_eq!(trace.describe(now), format!("last record, 0.5 s ago on node: {place}, which had ended"));
        trace.flight = Some(flight(7, 3000));
        assert_eq!(trace.describe(now), format!("last heartbeat, 0 s ago on node: {place}"));
        trace.heartbeat = None;
        assert!(trace.describe(now).starts_with("last record, 6.5 s ago: phase train"));
    }
}
