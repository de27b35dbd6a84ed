//! The flight record of a rank: the last things it did, exact to its last moment, since they lie in a mapped file that outlives it.
//!
//! `RUN/heartbeats/rank-K.flight`, written by `ilm-worker` (its module `vitals::flight` has the same table). Numbers are
//! little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `ILMFLT01` |
//! | 8..16 | process number |
//! | 16..24 | when the process began to write, in nanoseconds since 1970 |
//! | 24..32 | number of records R |
//! | 64..320 | names of the phases 0 to 15, 16 bytes each, filled up with zeros |
//! | 512.. | R records of 64 bytes; the one of number N is at place N mod R |
//!
//! | bytes of a record | what |
//! | --- | --- |
//! | 0..8 | its number, from 1 on; 0 while it is written |
//! | 8..16 | when, in nanoseconds since 1970 |
//! | 16..24 | finished optimizer steps |
//! | 24..32, 32..40 | number and bytes of the collective |
//! | 40 | 1: phase or step changed, 2: a collective was begun, 3: it ended |
//! | 41, 42 | phase; length of the collective's name |
//! | 43..64 | the name, cut off if it is longer |

use crate::heartbeat::{Collective, folder};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;

const MAGIC: &[u8] = b"ILMFLT01";
const PHASES_AT: usize = 64;
const PHASE_BYTES: usize = 16;
const HEAD: usize = 512;
const RECORD: usize = 64;
const NS_PER_MS: u64 = 1_000_000;

const BEGUN: u8 = 2;
const ENDED: u8 = 3;

/// Where a rank was when it wrote its last record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flight {
    /// The worker's process number on its host.
    pub pid: u32,
    /// What it did.
    pub phase: String,
    /// Finished optimizer steps.
    pub step: u64,
    /// The collective that it began last.
    pub last_collective: Option<Collective>,
    /// The oldest collective that it was in, if it was in one, and when it began that.
    pub inside: Option<(Collective, u64)>,
    /// When it wrote the last record; both times are in milliseconds since 1970 by the rank's clock.
    pub last_unix_ms: u64,
}

impl Flight {
    /// The record of `rank`, as it was at `until`, if its process began at `since` or later, both in milliseconds since 1970.
    pub fn read(run_dir: &Path, rank: usize, since: u64, until: u64) -> Option<Self> {
        let content = fs::read(folder(run_dir).join(format!("rank-{rank}.flight"))).ok()?;
        let (began, flight) = parse(&content, until)?;
        (began >= since).then_some(flight)
    }
}

impl fmt::Display for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {}, step {}", self.phase, self.step)?;
        match (&self.inside, &self.last_collective) {
            (Some((call, since)), _) => {
                let seconds = self.last_unix_ms.saturating_sub(*since) as f64 / 1000.0;
                write!(f, ", inside collective {call}, begun {seconds:.1} s before its last record")
            }
            (None, Some(call)) => write!(f, ", last collective {call}, which had ended"),
            (None, None) => Ok(()),
        }
    }
}

/// One record.
struct Record {
    number: u64,
    ms: u64,
    step: u64,
    kind: u8,
    phase: u8,
    call: Collective,
}

impl Record {
    /// None if it is empty, was being written, or is not at its place among `records`.
    fn parse(whole: &[u8], place: usize, records: usize) -> Option<Self> {
        let number = word(whole, 0)?;
        if number == 0 || number as usize % records != place {
            return None;
        }
        let name = whole.get(43..43 + usize::from(*whole.get(42)?))?;
        let name = String::from_utf8_lossy(name).into_owned();
        Some(Self {
            number,
            ms: word(whole, 8)? / NS_PER_MS,
            step: word(whole, 16)?,
            kind: *whole.get(40)?,
            phase: *whole.get(41)?,
            call: Collective { name, sequence: word(whole, 24)?, bytes: word(whole, 32)? },
        })
    }
}

/// When the process began to write, in milliseconds since 1970, and where it was at `until`.
fn parse(content: &[u8], until: u64) -> Option<(u64, Flight)> {
    if !content.starts_with(MAGIC) {
        return None;
    }
    let places = content.get(HEAD..)?.chunks_exact(RECORD);
    let count = places.len();
    let records = places.enumerate().filter_map(|(place, whole)| Record::parse(whole, place, count));
    let mut records: Vec<Record> = records.filter(|record| record.ms <= until).collect();
    records.sort_unstable_by_key(|record| record.number);

    let mut open: Vec<&Record> = Vec::new();
    let mut last_collective = None;
    for record in &records {
        match record.kind {
            BEGUN => {
                open.push(record);
                last_collective = Some(record.call.clone());
            }
            ENDED => open.retain(|begun| begun.call.sequence != record.call.sequence),
            _ => {}
        }
    }
    let newest = records.last()?;
    let name = content.get(PHASES_AT..HEAD)?.chunks_exact(PHASE_BYTES).nth(usize::from(newest.phase))?;
    let name = String::from_utf8_lossy(name);
    let flight = Flight {
        pid: word(content, 8)?.try_into().ok()?,
        phase: name.trim_end_matches('\0').to_owned(),
        step: newest.step,
        last_collective,
        inside: open.first().map(|begun| (begun.call.clone(), begun.ms)),
        last_unix_ms: newest.ms,
    };
    Some((word(content, 16)? / NS_PER_MS, flight))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `records`: number, milliseconds, step, kind, number of the collective.
    fn file(records: &[(u64, u64, u64, u8, u64)], places: usize) -> Vec<u8> {
        let mut content = vec![0; HEAD + places * RECORD];
        content[..8].copy_from_slice(MAGIC);
        content[16..24].copy_from_slice(&(50 * NS_PER_MS).to_le_bytes());
        content[PHASES_AT + PHASE_BYTES..][..5].copy_from_slice(b"train");
        for &(number, ms, step, kind, call) in records {
            let record = &mut content[HEAD + number as usize % places * RECORD..][..RECORD];
            let words = [number, ms * NS_PER_MS, step, call, 64].map(u64::to_le_bytes).concat();
            record[..40].copy_from_slice(&words);
            record[40..43].copy_from_slice(&[kind, 1, 9]);
            record[43..52].copy_from_slice(b"gradients");
        }
        content
    }

    fn text(content: &[u8]) -> Option<String> {
        parse(content, u64::MAX).map(|(_, flight)| flight.to_string())
    }

    #[test]
    fn the_place_is_that_of_the_newest_record_and_open_collectives_are_told() {
        let begun = [(1, 100, 7, 1, 0), (2, 110, 7, BEGUN, 4), (3, 120, 7, BEGUN, 5), (4, 130, 7, ENDED, 4)];
        let expected = "phase train, step 7, inside collective gradients (number 5, 64 bytes), begun 0.0 s before its last record";
        assert_eq!(text(&file(&begun, 8)).as_deref(), Some(expected));
        let mut ended = begun.to_vec();
        ended.extend([(5, 2120, 7, ENDED, 5), (6, 2130, 8, 1, 0)]);
        let expected = "phase train, step 8, last collective gradients (number 5, 64 bytes), which had ended";
        assert_eq!(text(&file(&ended, 8)).as_deref(), Some(expected));
        assert_eq!(text(&file(&ended[..1], 8)).as_deref(), Some("phase train, step 7"));
        let inside = parse(&file(&begun, 8), 115).unwrap().1.inside.unwrap();
        assert_eq!((inside.0.sequence, inside.1), (4, 110));
    }

    #[test]
    fn records_that_are_cut_off_or_of_the_round_before_are_passed_over() {
        let mut content =
            file(&[(9, 90, 9, 1, 0), (6, 60, 6, 1, 0), (7, 70, 7, BEGUN, 3), (8, 80, 8, ENDED, 3)], 4);
        assert_eq!(parse(&content, u64::MAX).map(|(began, flight)| (began, flight.step)), Some((50, 9)));
        let newest = HEAD + RECORD;
        content[newest..newest + 8].fill(0);
        assert_eq!(parse(&content, u64::MAX).map(|(_, flight)| flight.step), Some(8), "it was being written");
        for length in 0..content.len() {
            // Whatever is there of a file, reading it ends well.
            let _ = parse(&content[..length], u64::MAX);
        }
        assert_eq!(parse(&vec![0xff; content.len()], u64::MAX), None);
        let mut wild = content.clone();
        wild[HEAD..].fill(0xff);
        let _ = parse(&wild, u64::MAX);
    }

    #[test]
    fn a_record_of_an_earlier_process_is_none() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(folder(run.path())).unwrap();
        fs::write(folder(run.path()).join("rank-3.flight"), file(&[(1, 60, 7, 1, 0)], 4)).unwrap();
        assert_eq!(Flight::read(run.path(), 3, 50, 60).map(|flight| flight.step), Some(7));
        assert_eq!(Flight::read(run.path(), 3, 51, 60).or(Flight::read(run.path(), 2, 0, 60)), None);
    }
}
