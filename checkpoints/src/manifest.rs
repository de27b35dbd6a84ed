//! The manifest: what a checkpoint consists of, with a checksum over every byte of its own.
//!
//! The checksum is the last line and covers all bytes before that line, so that no byte can change unnoticed and a
//! file that was cut has no checksum at all.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::disk::checksum;
use crate::layout::{Layout, TensorEntry};

pub(crate) const MANIFEST_FILE: &str = "manifest.json";
/// The format version that this crate writes. It reads this one and those before it.
pub(crate) const VERSION: u64 = 2;
/// A larger file is no manifest; one for a thousand ranks and a hundred billion parameters is below this.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 28;

const FORMAT: &str = "ilm-checkpoint";
const CHECKSUM_BEGINS: &str = ",\n  \"checksum\": \"";
const CHECKSUM_ENDS: &str = "\"\n}\n";
const CHECKSUM_DIGITS: usize = 16;
/// Readers allocate one block, so its size is bounded before it is believed.
const MAX_BLOCK_BYTES: u64 = 1 << 26;
/// The longest header that the safetensors format allows, with its length field.
const MAX_HEADER_BYTES: u64 = 100_000_008;

/// Where the run stood: everything but the tensors that is needed to go on with the very same samples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Optimizer updates done.
    pub step: u64,
    /// The data position: samples taken from the global order so far.
    pub position: u64,
    /// The run's seed.
    pub seed: u64,
    /// Updates of the moving average done.
    pub ema_updates: u64,
    /// Rows of the embedding table (the vocabulary).
    pub num_embeddings: u64,
    /// Identifies the configuration of the run.
    pub config_hash: String,
    /// Identifies the training data; another value means that the position has no meaning.
    pub dataset_fingerprint: String,
    /// Ranks that wrote this checkpoint, one shard each.
    pub world_size: u64,
    /// Further counters by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// One rank's shard as the writer saw it; rank 0 puts the records of all ranks into the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// The rank that wrote it.
    pub rank: u64,
    /// Its file name within the checkpoint.
    pub file: String,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Checksum of the safetensors header, its length field included.
    pub header_checksum: String,
    /// Every section is cut into blocks of so many bytes, each with its own checksum.
    pub block_bytes: u64,
    /// The slices in the order in which they lie in the file. Those of one section follow each other, ascending.
    pub sections: Vec<SectionRecord>,
}

/// One section's slice within a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionRecord {
    /// The section: `master`, `exp_avg`, ...
    pub name: String,
    /// First element of the arena in this slice.
    pub start: u64,
    /// One past the last element of the arena in this slice.
    pub end: u64,
    /// Where the slice begins in the file, in bytes.
    pub file_offset: u64,
    /// Checksum of each block; the last block may be shorter.
    pub checksums: Vec<String>,
}

impl SectionRecord {
    /// Size of the slice in bytes; `None` if the range is reversed or too large for a file.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.end.checked_sub(self.start)?.checked_mul(size_of::<f32>() as u64)
    }
}

/// The name of a rank's shard within a checkpoint.
pub(crate) fn shard_file(rank: u64) -> String {
    format!("rank-{rank:05}.safetensors")
}

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) state: RunState,
    pub(crate) layout: Layout,
    pub(crate) shards: Vec<ShardRecord>,
}

/// Why the bytes of a manifest are not believed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Version(u64),
    Damaged(String),
}

/// Read before anything else, so that another version is told from damage.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u64,
    state: RunState,
    arena_len: u64,
    tensors: Vec<TensorEntry>,
    shards: Vec<ShardRecord>,
}

impl Manifest {
    /// The file's text: a person can read it, with one line per parameter and per shard.
    pub(crate) fn to_text(&self) -> serde_json::Result<String> {
        let state = serde_json::to_string_pretty(&self.state)?.replace('\n', "\n  ");
        let body = format!(
            "{{\n  \"format\": \"{FORMAT}\",\n  \"version\": {VERSION},\n  \"state\": {state},\n  \"arena_len\": {},\n  \
             \"tensors\": {},\n  \"shards\": {}",
            self.layout.len,
            one_per_line(&self.layout.tensors)?,
            one_per_line(&self.shards)?,
        );
        Ok(seal(body))
    }

    /// Reads the file's bytes: checksum first, then version, then contents; then checks that these fit together.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let body = unseal(bytes).map_err(|what| Fault::Damaged(what.into()))?;
        let json = [body, b"\n}"].concat();
        let head: Head = serde_json::from_slice(&json).map_err(|e| Fault::Damaged(e.to_string()))?;
        if head.format != FORMAT {
            return Err(Fault::Damaged(format!("its format is '{}' instead of '{FORMAT}'", head.format)));
        }
        if !(1..=VERSION).contains(&head.version) {
            return Err(Fault::Version(head.version));
        }
        let body: Body = serde_json::from_slice(&json).map_err(|e| Fault::Damaged(e.to_string()))?;
        let layout = Layout { len: body.arena_len, tensors: body.tensors };
        let manifest = Self { state: body.state, layout, shards: body.shards };
        manifest.validate().map_err(Fault::Damaged)?;
        Ok(manifest)
    }

    /// Says what does not fit together. After this, ranges, offsets and sizes can be used without further checks.
    pub(crate) fn validate(&self) -> Result<(), String> {
        self.layout.validate()?;
        if usize::try_from(self.layout.len).is_err() {
            return Err(format!("an arena of {} elements is too large for this machine", self.layout.len));
        }
        if self.shards.is_empty() || self.shards.len() as u64 != self.state.world_size {
            return Err(format!("{} shards of {} ranks", self.shards.len(), self.state.world_size));
        }
        let mut slices: BTreeMap<&str, Vec<Range<u64>>> = BTreeMap::new();
        for (rank, shard) in (0u64..).zip(&self.shards) {
            if shard.rank != rank {
                return Err(format!("the shard of rank {} stands in the place of rank {rank}", shard.rank));
            }
            validate_shard(shard).map_err(|what| format!("shard of rank {rank}: {what}"))?;
            for section in &shard.sections {
                slices.entry(&section.name).or_default().push(section.start..section.end);
            }
        }
        if slices.is_empty() {
            return Err("there are no sections".into());
        }
        for (name, slices) in slices {
            covers_once(slices, self.layout.len).map_err(|what| format!("section '{name}' {what}"))?;
        }
        Ok(())
    }
}

/// A list in JSON with one compact element per line.
fn one_per_line<T: Serialize>(items: &[T]) -> serde_json::Result<String> {
    let lines: Vec<String> = items.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    Ok(if lines.is_empty() { "[]".into() } else { format!("[\n    {}\n  ]", lines.join(",\n    ")) })
}

/// Appends the line with the checksum of everything before it.
pub(crate) fn seal(mut body: String) -> String {
    let digits = checksum(body.as_bytes());
    body.extend([CHECKSUM_BEGINS, &digits, CHECKSUM_ENDS]);
    body
}

/// The bytes before the checksum's line, if that line is there and right.
pub(crate) fn unseal(bytes: &[u8]) -> Result<&[u8], &'static str> {
    const CUT: &str = "it does not end with its checksum, so it was cut or edited";
    let rest = bytes.strip_suffix(CHECKSUM_ENDS.as_bytes()).ok_or(CUT)?;
    let (rest, digits) = rest.split_last_chunk::<CHECKSUM_DIGITS>().ok_or(CUT)?;
    let body = rest.strip_suffix(CHECKSUM_BEGINS.as_bytes()).ok_or(CUT)?;
    if checksum(body).as_bytes() == digits { Ok(body) } else { Err("its checksum differs") }
}

/// The file name, and slices that lie one after the other from the header to the end of the file.
fn validate_shard(shard: &ShardRecord) -> Result<(), String> {
    if shard.file != shard_file(shard.rank) {
        return Err(format!("its file is called {:?}", shard.file));
    }
    if shard.block_bytes == 0 || shard.block_bytes > MAX_BLOCK_BYTES || !shard.block_bytes.is_multiple_of(4) {
        return Err(format!("blocks of {} bytes", shard.block_bytes));
    }
    let header_end = shard.sections.first().map_or(shard.bytes, |section| section.file_offset);
    if !(8..=MAX_HEADER_BYTES).contains(&header_end) {
        return Err(format!("a header of {header_end} bytes"));
    }
    let mut end = header_end;
    for (i, section) in shard.sections.iter().enumerate() {
        let name = &section.name;
        let (earlier, same) = shard.sections[..i].split_at(i.saturating_sub(1));
        let follows = same.iter().any(|last| last.name == *name && last.end <= section.start);
        if !follows && earlier.iter().chain(same).any(|other| other.name == *name) {
            return Err(format!("section '{name}' is there twice"));
        }
        let bytes = section.bytes().ok_or_else(|| format!("section '{name}' has an impossible range"))?;
        if section.file_offset != end {
            return Err(format!("section '{name}' does not begin where the part before it ends"));
        }
        if section.checksums.len() as u64 != bytes.div_ceil(shard.block_bytes) {
            return Err(format!(
                "section '{name}' has {} checksums for {bytes} bytes",
                section.checksums.len()
            ));
        }
        end = end.checked_add(bytes).ok_or_else(|| format!("section '{name}' is too large"))?;
    }
    if end == shard.bytes { Ok(()) } else { Err(format!("{end} bytes in a file of {}", shard.bytes)) }
}

/// Says whether slices leave a gap in `0..len`, overlap or run past it. Empty slices (more ranks than data) are fine.
fn covers_once(mut slices: Vec<Range<u64>>, len: u64) -> Result<(), String> {
    slices.sort_by_key(|slice| (slice.start, slice.end));
    let mut end = 0;
    for slice in slices.into_iter().filter(|slice| !slice.is_empty()) {
        if slice.start != end {
            let kind = if slice.start > end { "leaves a gap" } else { "overlaps itself" };
            return Err(format!("{kind} at element {}", end.min(slice.start)));
        }
        end = slice.end;
    }
    if end == len { Ok(()) } else { Err(format!("has {end} of {len} elements")) }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
