//! The flight record: the last thousand things that a rank did, in a mapped file that outlives the process.
//!
//! `RUN/heartbeats/rank-K.flight`, read by `ilm-launch` (its module `flight` has the same table). Numbers are little-endian.
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

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use memmap2::MmapRaw;

use super::{Call, Phase};

pub(super) const PLACE: u8 = 1;
pub(super) const BEGUN: u8 = 2;
pub(super) const ENDED: u8 = 3;

/// Bytes of a phase's name in the head.
pub(super) const PHASE_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"ILMFLT01";
const PHASES_AT: usize = 64;
const HEAD: usize = 512;
const RECORDS: usize = 1024;
const WORDS: usize = 8;
/// Bytes of a record before the name.
const BEFORE_NAME: usize = 43;

/// The record of one rank.
#[derive(Debug)]
pub struct Flight {
    map: MmapRaw,
    /// Records so far.
    noted: AtomicU64,
}

impl Flight {
    /// Creates the file, in the place of one of an earlier process.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(path: &Path) -> io::Result<Self> {
        // Beside and renamed: a process that still has the old file mapped goes on writing into that.
        let staged = path.with_extension("flight-new");
        let mut content = vec![0; HEAD + RECORDS * WORDS * size_of::<u64>()];
        content[..8].copy_from_slice(MAGIC);
        let numbers = [u64::from(std::process::id()), unix_ns(), RECORDS as u64];
        content[8..32].copy_from_slice(&numbers.map(u64::to_le_bytes).concat());
        for (phase, place) in Phase::ALL.iter().zip(content[PHASES_AT..].chunks_mut(PHASE_BYTES)) {
            place[..phase.name().len()].copy_from_slice(phase.name().as_bytes());
        }
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&staged)?;
        // Written out, so that the disk has room for what is stored through the map later.
        file.write_all(&content)?;
        let map = MmapRaw::map_raw(&file)?;
        fs::rename(&staged, path)?;
        Ok(Self { map, noted: AtomicU64::new(0) })
    }

    /// Adds a record; from any thread, without a system call.
    pub fn note(&self, kind: u8, phase: u8, step: u64, call: Option<Call>) {
        let number = self.noted.fetch_add(1, Ordering::Relaxed) + 1;
        let mut tail = [0u8; 24];
        tail[0] = kind;
        tail[1] = phase;
        let name = call.map_or("", |call| call.name).as_bytes();
        let name = &name[..name.len().min(WORDS * size_of::<u64>() - BEFORE_NAME)];
        tail[2] = name.len() as u8;
        tail[3..3 + name.len()].copy_from_slice(name);
        let (call_number, bytes) = call.map_or((0, 0), |call| (call.number, call.bytes as u64));
        let record = self.record(number as usize % RECORDS);
        record[0].store(0, Ordering::Relaxed);
        // A process may be killed between any two stores: what is not whole must not look so.
        fence(Ordering::Release);
        let words = [unix_ns(), step, call_number, bytes];
        let tail = tail.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
        // The bytes of the tail lie as they are; the numbers are little-endian.
        let words = words.into_iter().map(u64::to_le).chain(tail);
        record[1..].iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
        record[0].store(number.to_le(), Ordering::Release);
    }

    fn record(&self, place: usize) -> &[AtomicU64] {
        let first = self.map.as_mut_ptr().wrapping_add(HEAD).cast::<AtomicU64>();
        // SAFETY: the map is as long as the head and all records, page-aligned, lives as long as `self`, and is written through
        // these atomics alone; `place` is below the number of records.
        unsafe { std::slice::from_raw_parts(first.wrapping_add(place * WORDS), WORDS) }
    }
}

/// Nanoseconds since 1970.
fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_lie_as_the_table_says_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.flight");
        fs::write(&path, "of an earlier process").unwrap();
        let flight = Flight::create(&path).unwrap();
        flight.note(PLACE, Phase::Train as u8, 1, None);
        let call = Call { name: "a name of more than twenty-one bytes", number: 77, bytes: 4096 };
        (2..=RECORDS as u64 + 1).for_each(|step| flight.note(BEGUN, Phase::Train as u8, step, Some(call)));
        drop(flight);

        let content = fs::read(&path).unwrap();
        let word = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().unwrap());
        assert_eq!((&content[..8], word(8), word(24)), (&MAGIC[..], u64::from(std::process::id()), 1024));
        assert_eq!(&content[64 + 2 * 16..][..6], b"train\0");
        let newest = HEAD + 64 * (1025 % RECORDS);
        assert_eq!((word(newest), word(newest + 16)), (1025, 1025), "it has taken the place of the first");
        assert_eq!((word(newest + 24), word(newest + 32)), (77, 4096));
        assert_eq!(content[newest + 40..newest + 43], [BEGUN, Phase::Train as u8, 21]);
        assert_eq!(&content[newest + 43..newest + 64], b"a name of more than t");
        assert!(word(newest + 8) >= word(16));
    }

    #[test]
    #[ignore = "a measurement: run it with --run-ignored all --no-capture"]
    fn what_a_record_costs() {
        let folder = tempfile::tempdir().unwrap();
        let flight = Flight::create(&folder.path().join("rank-0.flight")).unwrap();
        let call = Call { name: "gradients", number: 7, bytes: 1 << 20 };
        let started = std::time::Instant::now();
        (0..1_000_000).for_each(|step| flight.note(BEGUN, 2, step, Some(call)));
        println!("{} ns a record", started.elapsed().as_nanos() / 1_000_000);
    }
}
