//! Where results go: straight into the result's memory or, where a block reaches beyond it, by way of a block of its own.

use super::tile::{Block, STRIP};
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
