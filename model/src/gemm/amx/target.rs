//! Where results go: straight into the result's memory or, where a block reaches beyond it, by way of a block of its own.

use std::arch::x86_64::{_mm_sfence, _mm512_loadu_ps, _mm512_stream_ps};

use super::tile::{Block, LANES, STRIP};
use crate::parallel::Shared;

/// A block's elements.
pub(super) const BLOCK: usize = STRIP * STRIP;

/// 32 x 32 results, row behind row.
pub(super) type Dense = [f32; BLOCK];

/// A result without gaps between its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    memory: Shared<f32>,
    rows: usize,
    columns: usize,
}

/// A block of a result: its row and its column, counted in blocks.
pub(super) type Place = [usize; 2];

impl Target {
    pub(super) fn new(out: &mut [f32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(out.len(), rows * columns);
        Self { memory: Shared::of(out), rows, columns }
    }

    /// The block itself, if all of it is in the result.
    pub(super) fn block(self, place: Place) -> Option<Block> {
        let [row, column] = place.map(|at| at * STRIP);
        let is_whole = row + STRIP <= self.rows && column + STRIP <= self.columns;
        is_whole.then(|| Block {
            first: self.memory.address(row * self.columns + column, (STRIP - 1) * self.columns + STRIP),
            stride: self.columns,
        })
    }

    /// Copies what the result holds of a block.
    ///
    /// # Safety
    /// Nobody else writes the block.
    pub(super) unsafe fn load(self, place: Place, to: &mut Dense) {
        for (from, to) in self.lines(place).zip(to.chunks_exact_mut(STRIP)) {
            // SAFETY: the caller's promise.
            let from = unsafe { self.memory.slice(from.0, from.1) };
            to[..from.len()].copy_from_slice(from);
        }
    }

    /// Writes what the result has room for of a block.
    ///
    /// # Safety
    /// Nobody else uses the block.
    pub(super) unsafe fn store(self, place: Place, from: &Dense) {
        for (to, from) in self.lines(place).zip(from.chunks_exact(STRIP)) {
            // SAFETY: the caller's promise.
            let to = unsafe { self.memory.slice(to.0, to.1) };
            to.copy_from_slice(&from[..to.len()]);
        }
    }

    /// First element and length of the block's lines that are in the result.
    fn lines(self, place: Place) -> impl Iterator<Item = (usize, usize)> {
        let [row, column] = place.map(|at| at * STRIP);
        let columns = (self.columns - column).min(STRIP);
        (row..self.rows.min(row + STRIP)).map(move |row| (row * self.columns + column, columns))
    }
}

/// Writes a block past the caches, if its lines are those of memory: a line that is written as a whole need not be read first.
///
/// # Safety
/// The memory of `to` is valid, and nobody else uses it before this thread has [ended its streams](end_streams). The processor has
/// AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn stream(from: &Dense, to: Block) {
    const LINE: usize = 64;
    for (row, values) in from.chunks_exact(STRIP).enumerate() {
        let target = to.first.wrapping_add(row * to.stride);
        // SAFETY: the row of the block, by the caller's promise, and of as many values.
        unsafe {
            if target.addr().is_multiple_of(LINE) {
                _mm512_stream_ps(target, _mm512_loadu_ps(values.as_ptr()));
                _mm512_stream_ps(target.add(LANES), _mm512_loadu_ps(values.as_ptr().add(LANES)));
            } else {
                target.copy_from_nonoverlapping(values.as_ptr(), STRIP);
            }
        }
    }
}

/// After it, other threads that learn of this one's end see what it has streamed.
pub(super) fn end_streams() {
    // SAFETY: every processor of 64 bits has the instruction, which only waits.
    unsafe { _mm_sfence() };
}
