//! A checkpoint opened for reading: every byte that it hands out was hashed in the same pass.
//!
//! Files are read at positions instead of being mapped, so that a failing disk is an error and not a signal.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::disk::{checksum, read_bounded};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::manifest::{
    Fault, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, RunState, SectionRecord, ShardRecord, VERSION,
};
use crate::metrics::{self, Metrics};
use crate::parallel;

/// What one thread verifies at a time, so that one large shard keeps several busy.
const PIECE_BYTES: u64 = 64 << 20;
const ELEMENT: u64 = size_of::<f32>() as u64;

/// A committed checkpoint whose manifest is right and whose shards are all there with the right sizes.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens the directory of one checkpoint. The contents of the shards are checked when they are read, or all at
    /// once by [`Checkpoint::verify`].
    ///
    /// # Errors
    /// A manifest that is missing, damaged or of another version; a shard that is missing or has the wrong size.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let manifest = read_manifest(&dir.join(MANIFEST_FILE))?;
        let checkpoint = Self { dir, manifest };
        for shard in &checkpoint.manifest.shards {
            checkpoint.check_size(shard)?;
        }
        Ok(checkpoint)
    }

    /// Whether a directory looks like one of a checkpoint.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(MANIFEST_FILE).exists()
    }

    /// The checkpoint's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the run stood.
    pub fn state(&self) -> &RunState {
        &self.manifest.state
    }

    /// The figures recorded with this checkpoint.
    ///
    /// # Errors
    /// [`Error::BadMetrics`] if their file is damaged, otherwise the failure of the disk.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics::read(&self.dir)
    }

    /// Which range of the arena is which parameter.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    /// The names of the sections, in the order in which they were written.
    pub fn sections(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for section in self.manifest.shards.iter().flat_map(|shard| &shard.sections) {
            if !names.contains(&section.name.as_str()) {
                names.push(&section.name);
            }
        }
        names
    }

    /// Checks that a model has the very layout of this checkpoint.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`] with the first difference.
    pub fn require_layout(&self, model: &Layout) -> Result<()> {
        match self.layout().difference(model) {
            Some(what) => Err(Error::LayoutMismatch { path: self.dir.clone(), what }),
            None => Ok(()),
        }
    }

    /// Reads elements `range` of a section's arena into `out`, from however many shards they lie in.
    ///
    /// # Errors
    /// An unknown section, a range outside the arena or of another length than `out`, and damage to any block that
    /// is touched; `out` is then in part overwritten.
    pub fn read(&self, section: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Range { start, end } = range;
        let len = self.layout().len;
        if start > end || end as u64 > len || end - start != out.len() {
            return Err(Error::OutOfRange { path: self.dir.clone(), start, end, buffer: out.len(), len });
        }
        if !self.sections().contains(&section) {
            let known = self.sections().join(", ");
            return Err(Error::UnknownSection { path: self.dir.clone(), section: section.into(), known });
        }
        for shard in &self.manifest.shards {
            for slice in shard.sections.iter().filter(|slice| slice.name == section) {
                let from = (start as u64).max(slice.start);
                let to = (end as u64).min(slice.end);
                if from < to {
                    let part = &mut out[from as usize - start..to as usize - start];
                    self.read_slice(shard, slice, from, part)?;
                }
            }
        }
        Ok(())
    }

    /// Reads one parameter of a section by its name.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`], otherwise as [`Checkpoint::read`].
    pub fn read_tensor(&self, section: &str, name: &str) -> Result<Vec<f32>> {
        let Some(tensor) = self.layout().tensor(name) else {
            return Err(Error::UnknownTensor { path: self.dir.clone(), name: name.into() });
        };
        let mut values = vec![0.0; tensor.len as usize];
        self.read(section, tensor.offset as usize..(tensor.offset + tensor.len) as usize, &mut values)?;
        Ok(values)
    }

    /// Reads every byte of every shard, on several threads, and compares headers and checksums.
    ///
    /// # Errors
    /// The first damage in the order of ranks and sections.
    pub fn verify(&self) -> Result<()> {
        parallel::for_each(self.manifest.shards.iter().collect(), |shard| self.verify_header(shard))?;
        let mut pieces = Vec::new();
        for shard in &self.manifest.shards {
            let step = (PIECE_BYTES / shard.block_bytes).max(1);
            for slice in &shard.sections {
                let blocks = slice.checksums.len() as u64;
                let starts = (0..blocks).step_by(step as usize);
                pieces.extend(starts.map(|start| (shard, slice, start..blocks.min(start + step))));
            }
        }
        parallel::for_each(pieces, |(shard, slice, blocks)| self.read_blocks(shard, slice, blocks, |_, _| ()))
    }

    /// Reads `out.len()` elements of one slice from arena element `from` on.
    fn read_slice(
        &self,
        shard: &ShardRecord,
        slice: &SectionRecord,
        from: u64,
        out: &mut [f32],
    ) -> Result<()> {
        let begin = (from - slice.start) * ELEMENT;
        let end = begin + out.len() as u64 * ELEMENT;
        let blocks = begin / shard.block_bytes..end.div_ceil(shard.block_bytes);
        let mut rest = out;
        self.read_blocks(shard, slice, blocks, |offset, block| {
            let wanted = &block[begin.saturating_sub(offset) as usize..];
            let count = rest.len().min(wanted.len() / ELEMENT as usize);
            let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
            for (element, bytes) in now.iter_mut().zip(wanted.as_chunks().0) {
                *element = f32::from_le_bytes(*bytes);
            }
            rest = later;
        })
    }

    /// Reads and checks blocks of one slice; `each` gets a block's offset within the slice and its bytes.
    fn read_blocks(
        &self,
        shard: &ShardRecord,
        slice: &SectionRecord,
        blocks: Range<u64>,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<()> {
        let file = self.open_shard(shard)?;
        let bytes = (slice.end - slice.start) * ELEMENT;
        let mut block = Vec::new();
        for index in blocks {
            let offset = index * shard.block_bytes;
            block.resize((bytes - offset).min(shard.block_bytes) as usize, 0);
            self.read_at(shard, &file, &mut block, slice.file_offset + offset)?;
            if slice.checksums.get(index as usize) != Some(&checksum(&block)) {
                let part = format!("section '{}', block {index}", slice.name);
                return Err(Error::BadChecksum { path: self.path(shard), part });
            }
            each(offset, &block);
        }
        Ok(())
    }

    /// The header must be the one written, and say about the file what the manifest says.
    fn verify_header(&self, shard: &ShardRecord) -> Result<()> {
        let file = self.open_shard(shard)?;
        let length = shard.sections.first().map_or(shard.bytes, |slice| slice.file_offset);
        let mut header = vec![0; length as usize];
        self.read_at(shard, &file, &mut header, 0)?;
        if checksum(&header) != shard.header_checksum {
            return Err(Error::BadChecksum { path: self.path(shard), part: "its header".into() });
        }
        header_matches(&header, shard).map_err(|what| Error::BadHeader { path: self.path(shard), what })
    }

    fn check_size(&self, shard: &ShardRecord) -> Result<()> {
        let path = self.path(shard);
        match path.metadata() {
            Ok(found) if found.len() == shard.bytes => Ok(()),
            Ok(found) => Err(Error::WrongSize { path, expected: shard.bytes, found: found.len() }),
            Err(e) => Err(missing_or("read", path, e)),
        }
    }

    fn open_shard(&self, shard: &ShardRecord) -> Result<File> {
        let path = self.path(shard);
        File::open(&path).map_err(|e| missing_or("open", path, e))
    }

    fn read_at(&self, shard: &ShardRecord, file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(bytes, offset).or_else(|e| {
            self.check_size(shard)?;
            Err(Error::io("read", &self.path(shard), e))
        })
    }

    fn path(&self, shard: &ShardRecord) -> PathBuf {
        self.dir.join(&shard.file)
    }
}

fn missing_or(action: &'static str, path: PathBuf, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => Error::MissingShard { path },
        _ => Error::io(action, &path, e),
    }
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let damaged = |what| Error::BadManifest { path: path.into(), what };
    let bytes = match read_bounded(path, MAX_MANIFEST_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::MissingManifest { path: path.into() });
        }
        read => read?.map_err(damaged)?,
    };
    Manifest::parse(&bytes).map_err(|fault| match fault {
        Fault::Version(found) => Error::WrongVersion { path: path.into(), found, supported: VERSION },
        Fault::Damaged(what) => damaged(what),
    })
}

/// Compares a header, length field included, with the record of its shard.
fn header_matches(header: &[u8], shard: &ShardRecord) -> Result<(), String> {
    let (length, json) = header.split_first_chunk().ok_or("it has no length field")?;
    if u64::from_le_bytes(*length) != json.len() as u64 {
        return Err(format!("its length field says {}", u64::from_le_bytes(*length)));
    }
    let metadata: Metadata = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let sections: Vec<&[SectionRecord]> =
        shard.sections.chunk_by(|one, next| one.name == next.name).collect();
    if metadata.tensors().len() != sections.len() {
        return Err(format!("it has {} tensors", metadata.tensors().len()));
    }
    for slices in sections {
        let Some(first) = slices.first() else { continue };
        let info = metadata.info(&first.name).ok_or_else(|| format!("it has no tensor '{}'", first.name))?;
        let begin = info.data_offsets.0 as u64 + header.len() as u64;
        let shape: Vec<u64> = info.shape.iter().map(|&size| size as u64).collect();
        let elements: u64 = slices.iter().map(|slice| slice.end - slice.start).sum();
        if info.dtype != Dtype::F32 || shape != [elements] || begin != first.file_offset {
            return Err(format!("its tensor '{}' is another one", first.name));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
