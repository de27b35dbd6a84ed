//! Writing one rank's shard: a safetensors file of its slices, hashed while it is written, durable on return.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::disk::{checksum, sync_dir};
use crate::error::{Error, Result};
use crate::manifest::{SectionRecord, ShardRecord, shard_file};

/// Elements per block: 4 MiB, which is also all the memory that writing takes.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// A rank's slice of one flat arena. Several slices of one arena follow each other in ascending order.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    /// The arena: `master`, `exp_avg`, `exp_avg_sq`, `ema`; lower-case letters, digits and `_`.
    pub name: &'a str,
    /// The slice's elements within the arena. May be empty.
    pub range: Range<usize>,
    /// The slice, `range.len()` elements.
    pub data: &'a [f32],
}

/// Writes the shard of `rank` into the staging directory `dir` and makes it durable.
///
/// The data may not change before this returns; a rank that goes on training uses [`crate::BackgroundWriter`].
///
/// # Errors
/// [`Error::Unsavable`] for sections that contradict themselves, otherwise the failure of the disk; the file is then
/// left for [`crate::Store::abandon`]. A file that exists is an error, since two ranks would share a number.
pub fn write_shard(dir: &Path, rank: usize, sections: &[Section<'_>]) -> Result<ShardRecord> {
    write_shard_in_blocks(dir, rank, sections, BLOCK_ELEMENTS)
}

pub(crate) fn write_shard_in_blocks(
    dir: &Path,
    rank: usize,
    sections: &[Section<'_>],
    block_elements: usize,
) -> Result<ShardRecord> {
    let file = shard_file(rank as u64);
    let path = dir.join(&file);
    let header = header(sections).map_err(|what| Error::Unsavable { path: path.clone(), what })?;
    let written = File::create_new(&path)
        .and_then(|mut file| write_parts(&mut file, &header, sections, block_elements));
    let sections = written.map_err(|e| Error::io("write", &path, e))?;
    sync_dir(dir)?;
    let end = sections.last().map(|section| section.file_offset + (section.end - section.start) * 4);
    Ok(ShardRecord {
        rank: rank as u64,
        file,
        bytes: end.unwrap_or(header.len() as u64),
        header_checksum: checksum(&header),
        block_bytes: block_elements as u64 * 4,
        sections,
    })
}

/// Header and sections one after the other, then the sync that makes them durable.
fn write_parts(
    file: &mut File,
    header: &[u8],
    sections: &[Section<'_>],
    block_elements: usize,
) -> io::Result<Vec<SectionRecord>> {
    file.write_all(header)?;
    let mut file_offset = header.len() as u64;
    let mut block = Vec::new();
    let mut records = Vec::with_capacity(sections.len());
    for section in sections {
        let mut checksums = Vec::new();
        for elements in section.data.chunks(block_elements) {
            block.resize(size_of_val(elements), 0);
            for (bytes, element) in block.as_chunks_mut().0.iter_mut().zip(elements) {
                *bytes = element.to_le_bytes();
            }
            checksums.push(checksum(&block));
            file.write_all(&block)?;
        }
        let Range { start, end } = section.range;
        records.push(SectionRecord {
            name: section.name.into(),
            start: start as u64,
            end: end as u64,
            file_offset,
            checksums,
        });
        file_offset += size_of_val(section.data) as u64;
    }
    // The file's length is part of what this makes durable; its times need not be.
    file.sync_data()?;
    Ok(records)
}

/// The safetensors header with its length field, padded so that the data begins on a multiple of eight bytes.
fn header(sections: &[Section<'_>]) -> Result<Vec<u8>, String> {
    let mut tensors: Vec<(String, TensorInfo)> = Vec::new();
    let mut end = 0;
    for (i, section) in sections.iter().enumerate() {
        let Section { name, range, data } = section;
        let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        if name.is_empty() || name.starts_with('_') || !name.bytes().all(letters) {
            return Err(format!("section name {name:?} is not made of lower-case letters, digits and '_'"));
        }
        if range.start > range.end || range.len() != data.len() {
            return Err(format!("section '{name}' has {} elements for the range {range:?}", data.len()));
        }
        let begin = end;
        end += size_of_val(*data);
        if let Some((_, info)) = tensors.last_mut().filter(|(last, _)| last == name) {
            if range.start < sections[i - 1].range.end {
                return Err(format!("the slices of section '{name}' do not ascend"));
            }
            info.shape[0] += data.len();
            info.data_offsets.1 = end;
            continue;
        }
        if tensors.iter().any(|(other, _)| other == name) {
            return Err(format!("section '{name}' is given twice"));
        }
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![data.len()], data_offsets: (begin, end) };
        tensors.push((name.to_string(), info));
    }
    // One entry only: more would be written in random order, and equal shards should be equal bytes.
    let ranges: Vec<String> = sections.iter().map(|s| format!("{}={:?}", s.name, s.range)).collect();
    let about = HashMap::from([("ranges".to_string(), ranges.join(" "))]);
    let metadata = Metadata::new(Some(about), tensors).map_err(|e| e.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
