//! Tensors read one by one, in blocks, and converted to f32 on the way.

use std::os::unix::fs::FileExt;

use super::convert::Float;
use super::error::WeightsError;
use super::file::{StoredTensor, WeightsFile};
use super::keys::is_frequencies;
use super::rotary;
use crate::error::{Error, Result};

/// Bytes read at a time; a multiple of every element's size.
const BLOCK_BYTES: usize = 1 << 20;

impl WeightsFile {
    /// Reads one tensor by the model's name for it.
    ///
    /// # Errors
    /// As [`WeightsFile::read_tensor`].
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        // The file is known to hold that many bytes, so the memory is bounded by its size.
        let mut values = vec![0.0; self.tensor(name)?.elements()? as usize];
        self.read_tensor(name, &mut values)?;
        Ok(values)
    }

    /// Reads one tensor that must have this shape.
    ///
    /// # Errors
    /// [`WeightsError::Shape`] for another one; otherwise as [`WeightsFile::read_tensor`].
    pub fn read_shaped(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            let (path, key) = (self.path().into(), tensor.key.clone());
            let (found, needed) = (tensor.shape.clone(), shape.into());
            return Err(WeightsError::Shape { path, key, found, needed }.into());
        }
        self.read(name)
    }

    /// Reads one tensor into a slice of exactly its length.
    ///
    /// F32 keeps every bit, F16 and BF16 are exact, F64 is rounded to the nearest (ties to even).
    ///
    /// # Errors
    /// [`WeightsError::UnknownTensor`], [`WeightsError::BufferSize`], [`WeightsError::Dtype`] for anything but
    /// floating point, [`WeightsError::OutOfRange`]; otherwise the failure of the disk. `out` is then in part
    /// overwritten.
    pub fn read_tensor(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let tensor = self.tensor(name)?;
        let needed = tensor.elements()?;
        if out.len() as u64 != needed {
            let (path, name) = (self.path().into(), name.into());
            return Err(WeightsError::BufferSize { path, name, buffer: out.len(), needed }.into());
        }
        let (float, part) = (tensor.float()?, &tensor.part);
        let per_block = BLOCK_BYTES / float.size();
        let mut offset = part.data_start + tensor.bytes.0;
        let mut block = Vec::new();
        for (index, out) in out.chunks_mut(per_block).enumerate() {
            block.resize(out.len() * float.size(), 0);
            part.file.read_exact_at(&mut block, offset).map_err(|e| Error::io("read", &part.path, e))?;
            offset += block.len() as u64;
            float.decode(&block, out).map_err(|lost| WeightsError::OutOfRange {
                path: part.path.clone(),
                key: tensor.key.clone(),
                element: (index * per_block + lost.element) as u64,
                value: lost.value,
            })?;
        }
        Ok(())
    }

    /// Checks that all stored frequencies are those of that rotary dimension, up to the rounding of their type.
    /// The model computes them itself, so weights without any are right.
    ///
    /// # Errors
    /// [`WeightsError::Frequencies`] with the first difference; otherwise as [`WeightsFile::read_tensor`].
    pub fn check_frequencies(&self, rotary_emb_dim: u64) -> Result<()> {
        for (name, tensor) in self.tensors().iter().filter(|(name, _)| is_frequencies(name)) {
            let stored = self.read(name)?;
            if let Some((element, expected)) = odd_one_out(&stored, tensor.float()?, rotary_emb_dim) {
                let found = stored.get(element).copied().unwrap_or(f32::NAN);
                let (path, key) = (self.path().into(), tensor.key.clone());
                return Err(WeightsError::Frequencies {
                    path,
                    key,
                    element,
                    found,
                    expected,
                    rotary_emb_dim,
                }
                .into());
            }
        }
        Ok(())
    }
}

impl StoredTensor {
    /// Refuses what is not floating point.
    pub(super) fn float(&self) -> Result<Float, WeightsError> {
        Float::of(self.dtype).ok_or_else(|| WeightsError::Dtype {
            path: self.part.path.clone(),
            key: self.key.clone(),
            dtype: self.dtype(),
        })
    }

    fn elements(&self) -> Result<u64, WeightsError> {
        let (begin, end) = self.bytes;
        Ok((end - begin) / self.float()?.size() as u64)
    }
}

/// The first stored frequency that is not the one expected, and the one expected (NaN beyond the last one).
fn odd_one_out(stored: &[f32], float: Float, rotary_emb_dim: u64) -> Option<(usize, f32)> {
    // Two libraries' powers differ by a few units in the last place.
    let tolerance = float.rounding() + 8.0 * f32::EPSILON;
    let count = rotary::count(rotary_emb_dim);
    let expected = |i: usize| match i as u64 {
        i if i < count => rotary::inverse_frequency(i, rotary_emb_dim),
        _ => f32::NAN,
    };
    let close = |i, found: f32| (found - expected(i)).abs() <= tolerance * expected(i);
    let differs = stored.iter().enumerate().position(|(i, &found)| !close(i, found));
    let missing = ((stored.len() as u64) < count).then_some(stored.len());
    differs.or(missing).map(|element| (element, expected(element)))
}
