//! A column's bytes as the Parquet decoder wants them: addressed by their place in the file, nothing outside them.

use std::io::Cursor;

use bytes::Bytes;
use parquet::{
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};

/// The bytes of one column of a row group.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    start: u64,
    bytes: Bytes,
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Chunk {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        self.from(start).map(Cursor::new)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(ParquetError::EOF(format!("a page claims {length} bytes, {} are left", bytes.len())));
        }
        Ok(bytes.slice(..length))
    }
}

impl Chunk {
    /// Bytes that lie at `start` in their file.
    pub fn new(start: u64, bytes: Bytes) -> Self {
        Self { start, bytes }
    }

    /// All of them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn from(&self, start: u64) -> Result<Bytes> {
        let skipped = start.checked_sub(self.start).filter(|&skipped| skipped <= self.bytes.len() as u64);
        let skipped = skipped.ok_or_else(|| ParquetError::EOF("a page lies outside its column".into()))?;
        Ok(self.bytes.slice(skipped as usize..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_bytes_can_be_read() {
        let chunk = Chunk::new(100, Bytes::from_static(b"abcdef"));
        assert_eq!(chunk.get_bytes(102, 3).unwrap(), "cde");
        assert_eq!(chunk.get_bytes(106, 0).unwrap(), "");
        for (start, length) in [(99, 1), (107, 0), (104, 3), (0, 1), (u64::MAX, 1), (101, usize::MAX)] {
            assert!(chunk.get_bytes(start, length).is_err(), "{start} {length}");
        }
        assert!(chunk.get_read(99).is_err());
    }
}
