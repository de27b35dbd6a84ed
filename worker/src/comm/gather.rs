//! Everybody's bytes for everybody, however many: in rounds, since MPI counts with 32 bits.

use std::ffi::c_int;

use mpi::ffi;

use super::mpi::check;

/// All ranks' bytes of a round: far below what MPI can count, and memory that a rank has beside the result.
const ROUND_BYTES: usize = 64 << 20;

/// The bytes of every rank, by rank.
pub(super) fn gather_bytes(
    comm: ffi::MPI_Comm,
    world_size: usize,
    mine: &[u8],
) -> Result<Vec<Vec<u8>>, c_int> {
    let lengths = gather_lengths(comm, world_size, mine.len())?;
    let most = (ROUND_BYTES / world_size).max(1);
    let mut all: Vec<Vec<u8>> = lengths.iter().map(|&length| Vec::with_capacity(length)).collect();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    for begin in (0..longest).step_by(most) {
        let counts: Vec<usize> =
            lengths.iter().map(|length| length.saturating_sub(begin).min(most)).collect();
        let piece = mine.get(begin..).unwrap_or_default();
        let mut rest = &gather_round(comm, &piece[..piece.len().min(most)], &counts)?[..];
        for (bytes, count) in all.iter_mut().zip(counts) {
            let (part, others) = rest.split_at(count);
            bytes.extend_from_slice(part);
            rest = others;
        }
    }
    Ok(all)
}

fn gather_lengths(comm: ffi::MPI_Comm, world_size: usize, mine: usize) -> Result<Vec<usize>, c_int> {
    let mine = mine as u64;
    let mut lengths = vec![0u64; world_size];
    // SAFETY: one number is sent, and `lengths` has room for one of every rank.
    check(unsafe {
        ffi::MPI_Allgather(
            (&raw const mine).cast(),
            1,
            ffi::RSMPI_UINT64_T,
            lengths.as_mut_ptr().cast(),
            1,
            ffi::RSMPI_UINT64_T,
            comm,
        )
    })?;
    Ok(lengths.into_iter().map(|length| length as usize).collect())
}

/// The parts of all ranks behind each other. At least one is not empty: MPI would take the shared address of empty vectors for
/// forbidden aliasing.
fn gather_round(comm: ffi::MPI_Comm, mine: &[u8], counts: &[usize]) -> Result<Vec<u8>, c_int> {
    let lengths: Vec<c_int> = counts.iter().map(|&count| count as c_int).collect();
    let offsets: Vec<c_int> = lengths
        .iter()
        .scan(0, |end, length| {
            let begin = *end;
            *end += length;
            Some(begin)
        })
        .collect();
    let mut all = vec![0u8; counts.iter().sum()];
    // SAFETY: `all` has room for the sum of the lengths, laid out by `offsets`; together they are at most `ROUND_BYTES`, or one byte of
    // each rank.
    check(unsafe {
        ffi::MPI_Allgatherv(
            mine.as_ptr().cast(),
            mine.len() as c_int,
            ffi::RSMPI_UINT8_T,
            all.as_mut_ptr().cast(),
            lengths.as_ptr(),
            offsets.as_ptr(),
            ffi::RSMPI_UINT8_T,
            comm,
        )
    })?;
    Ok(all)
}
