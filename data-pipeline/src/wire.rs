//! A packed batch as bytes, for other ranks of the same run.

use crate::{
    batch::{BatchArrays, BatchLayout, PackedBatch},
    drop::SampleKey,
    error::{Error, Result},
};

/// Numbers that come first: rows, visible tokens and target entries.
const HEAD: usize = 3;
/// Numbers of 32 bits that a sample takes.
const SAMPLE: usize = 6;

impl PackedBatch {
    /// Numbers of 32 bits, little-endian: sizes, samples, and the arrays in their order. What they count and the ids of tokens all
    /// fit.
    pub fn to_bytes(&self) -> Vec<u8> {
        let BatchLayout { rows, visible, targets } = *self.layout();
        let sizes = [rows, visible, targets].map(|size| size as u32);
        let halves = |number: u64| [number as u32, (number >> u32::BITS) as u32];
        let sample = |key: &SampleKey| [key.position, key.epoch, key.row].map(halves);
        let samples = self.samples().iter().flat_map(sample).flatten();
        let words = self.words().iter().map(|&word| word as u32);
        sizes.into_iter().chain(samples).chain(words).flat_map(u32::to_le_bytes).collect()
    }

    /// The batch of these [bytes](Self::to_bytes), in ordinary memory.
    ///
    /// # Errors
    /// [`Error::Plan`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let numbers: Vec<u32> =
            bytes.as_chunks().0.iter().map(|&number| u32::from_le_bytes(number)).collect();
        Self::of_numbers(&numbers)
            .ok_or_else(|| Error::Plan(format!("{} bytes of another rank are no rows", bytes.len())))
    }

    fn of_numbers(numbers: &[u32]) -> Option<Self> {
        let (sizes, rest) = numbers.split_first_chunk::<HEAD>()?;
        let [rows, visible, targets] = sizes.map(|size| size as usize);
        let (samples, words) = rest.split_at_checked(rows.checked_mul(SAMPLE)?)?;
        let whole = |low: u32, high: u32| u64::from(low) | u64::from(high) << u32::BITS;
        let sample = |halves: &[u32; SAMPLE]| {
            let [position, epoch, row] = [0, 2, 4].map(|at| whole(halves[at], halves[at + 1]));
            SampleKey { position, epoch, row }
        };
        let samples = samples.as_chunks().0.iter().map(sample).collect();
        let layout = BatchLayout { rows, visible, targets };
        let words: Vec<i64> = words.iter().map(|&word| i64::from(word)).collect();
        if words.len() != layout.words() {
            return None;
        }
        let arrays = BatchArrays {
            row_ptr: &words[layout.row_ptr()],
            cls: &words[layout.cls()],
            tokens: &words[layout.tokens()],
            positions: &words[layout.positions()],
            token_types: &words[layout.token_types()],
            tgt_ptr: &words[layout.tgt_ptr()],
            tgt_ids: &words[layout.tgt_ids()],
            tgt_counts: &words[layout.tgt_counts()],
        };
        Self::from_arrays(samples, arrays).ok()
    }
}
