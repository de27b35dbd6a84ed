//! The rank before this one on the ring, where both are on one host: its memory is read instead of sent.
//!
//! The kernel copies from process to process, as it does for MPI's own large messages. What is to be added is read in parts that
//! are still in the nearest cache when they are added; a message would be whole before that.

use std::hash::{BuildHasher, RandomState};
use std::io::IoSliceMut;

use half::bf16;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Collectives, CommError, FlatMemory};
use crate::host;

/// Elements that are read at once when they are to be added, 128 KiB: they stay in a core's own cache, and shorter parts cost more
/// calls than they save.
const PART: usize = 1 << 15;
/// Open MPI's own setting: `none` where processes are not to read each other's memory.
pub(super) const SETTING: &str = "OMPI_MCA_btl_vader_single_copy_mechanism";

/// A process whose memory this one reads.
pub(super) struct Neighbour {
    pid: Pid,
    /// In its address space.
    memory: FlatMemory,
    part: Box<[f32]>,
}

/// Who reads whose memory on the ring.
pub(super) struct Neighbours {
    /// The rank before, if this one reads its memory.
    pub(super) before: Option<Neighbour>,
    /// Whether the rank after this one reads this one's memory.
    pub(super) read_by_next: bool,
    /// Ranks that read the memory of the one before them.
    pub(super) readers: usize,
}

impl Neighbours {
    /// Finds out on all ranks at once: by the host's name, and by a random number that only the right process has.
    ///
    /// # Errors
    /// A failing collective.
    pub(super) fn find(comm: &mut dyn Collectives, memory: FlatMemory) -> Result<Self, CommError> {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let secret = Box::new(RandomState::new().hash_one(rank));
        let host = host::name();
        let mine = [Card::new(&secret, memory).as_bytes(), host.as_bytes()].concat();
        let all = comm.all_gather("neighbours", &mine)?;
        let wanted = std::env::var(SETTING).as_deref() != Ok("none");
        let card = Card::read_from_prefix(&all[(rank + world_size - 1) % world_size]).ok();
        let card = card.filter(|(_, theirs)| wanted && *theirs == host.as_bytes());
        let before = card.and_then(|(card, _)| card.neighbour());
        // Whoever answers has read its neighbour's secret.
        let answers = comm.all_gather("readers", &[u8::from(before.is_some())])?;
        let reads = |answer: &Vec<u8>| *answer == [1];
        let readers = answers.iter().filter(|answer| reads(answer)).count();
        Ok(Self { before, read_by_next: reads(&answers[(rank + 1) % world_size]), readers })
    }
}

impl Neighbour {
    /// Its buffers, in its address space.
    pub(super) fn memory(&self) -> &FlatMemory {
        &self.memory
    }

    /// Adds its values from `theirs` on to `sums`; false if it is no longer there.
    pub(super) fn add(&mut self, theirs: *const f32, sums: &mut [f32]) -> Result<bool, Errno> {
        for (index, sums) in sums.chunks_mut(PART).enumerate() {
            let part = &mut self.part[..sums.len()];
            if !read(self.pid, theirs.wrapping_add(index * PART), part)? {
                return Ok(false);
            }
            super::ring::add(sums, part);
        }
        Ok(true)
    }

    /// Copies its values from `theirs` on; false if it is no longer there.
    pub(super) fn copy(&self, theirs: *const f32, values: &mut [f32]) -> Result<bool, Errno> {
        read(self.pid, theirs, values)
    }
}

/// What a rank tells the one after it.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Card {
    pid: i64,
    secret: u64,
    /// Addresses: of the secret, the parameters, the gradients and the rounded parameters, 0 if there are none.
    places: [u64; 4],
    capacity: u64,
}

impl Card {
    fn new(secret: &u64, memory: FlatMemory) -> Self {
        let FlatMemory { params, grads, rounded, capacity } = memory;
        let rounded = rounded.map_or(0, |rounded| rounded as u64);
        Self {
            pid: i64::from(Pid::this().as_raw()),
            secret: *secret,
            places: [&raw const *secret as u64, params as u64, grads as u64, rounded],
            capacity: capacity as u64,
        }
    }

    /// The process that wrote it, if that is within reach.
    fn neighbour(&self) -> Option<Neighbour> {
        let pid = Pid::from_raw(self.pid.try_into().ok()?);
        let [secret, params, grads, rounded] = self.places.map(|place| place as usize);
        let mut found = [0u64];
        let reached = read(pid, secret as *const u64, &mut found);
        (reached == Ok(true) && found == [self.secret]).then(|| Neighbour {
            pid,
            memory: FlatMemory {
                params: params as *mut f32,
                grads: grads as *mut f32,
                rounded: (rounded != 0).then_some(rounded as *mut bf16),
                capacity: self.capacity as usize,
            },
            part: vec![0.0; PART].into(),
        })
    }
}

/// Reads from the memory of a process; false if it has ended, which its launcher is about to say.
fn read<T: FromBytes + IntoBytes>(pid: Pid, theirs: *const T, values: &mut [T]) -> Result<bool, Errno> {
    let bytes = values.as_mut_bytes();
    let mut done = 0;
    while done < bytes.len() {
        let remote = RemoteIoVec { base: theirs as usize + done, len: bytes.len() - done };
        match process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes[done..])], &[remote]) {
            Ok(0) | Err(Errno::ESRCH) => return Ok(false),
            Ok(read) => done += read,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::Solo;
    use super::*;

    fn memory(params: &mut [f32], grads: &mut [f32]) -> FlatMemory {
        let capacity = params.len();
        FlatMemory { params: params.as_mut_ptr(), grads: grads.as_mut_ptr(), rounded: None, capacity }
    }

    #[test]
    fn a_process_within_reach_is_read() {
        let (mut params, mut grads) = ([1.0; 5], [2.0; 5]);
        let own = memory(&mut params, &mut grads);
        // a ring of one: it is its own neighbour
        let Neighbours { before, read_by_next, readers } = Neighbours::find(&mut Solo, own).unwrap();
        let mut before = before.expect("a process reads its own memory");
        assert!(read_by_next && readers == 1);
        assert_eq!((before.memory().params, before.memory().capacity), (own.params, 5));
        let mut values = vec![0.5; 3];
        assert_eq!(before.add(before.memory().grads, &mut values), Ok(true));
        assert_eq!(values, [2.5; 3]);
        assert_eq!(before.copy(before.memory().params.wrapping_add(3), &mut values[..2]), Ok(true));
        assert_eq!(values, [1.0, 1.0, 2.5]);
        assert_eq!(before.copy(std::ptr::null(), &mut values), Err(Errno::EFAULT));
    }

    #[test]
    fn sums_longer_than_a_part_are_whole() {
        let mut grads: Vec<f32> = (0..2 * PART + 7).map(|i| i as f32).collect();
        let mut params = vec![0.0; grads.len()];
        let own = memory(&mut params, &mut grads);
        let mut before = Neighbours::find(&mut Solo, own).unwrap().before.unwrap();
        let mut sums = vec![1.0; grads.len()];
        assert_eq!(before.add(own.grads, &mut sums), Ok(true));
        assert!(sums.iter().zip(&grads).all(|(sum, value)| *sum == 1.0 + value));
    }

    #[test]
    fn another_process_is_no_neighbour() {
        let (mut params, mut grads) = ([1.0; 5], [2.0; 5]);
        let own = memory(&mut params, &mut grads);
        let secret = 17;
        assert!(Card::new(&secret, own).neighbour().is_some());
        // another process in its place: the number is another, or its memory cannot be read
        assert!(Card { secret: 18, ..Card::new(&secret, own) }.neighbour().is_none());
        assert!(Card { pid: i64::MAX, ..Card::new(&secret, own) }.neighbour().is_none());
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let pid = i64::from(ended.id());
        assert!(Card { pid, ..Card::new(&secret, own) }.neighbour().is_none());
        assert_eq!(read(Pid::from_raw(pid as i32), &raw const secret, &mut [0]), Ok(false));
    }
}
