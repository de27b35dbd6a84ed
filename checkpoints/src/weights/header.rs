//! The header of a safetensors file: read within bounds and checked to the last byte, written always alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::Dtype;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::WeightsError;
use crate::error::{Error, Result};

/// What other readers of safetensors allow too.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;
/// The entry that is no tensor.
const METADATA: &str = "__metadata__";

/// What the header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TensorInfo {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// First byte and one past the last, counted from the end of the header.
    pub(crate) data_offsets: (u64, u64),
}

/// A header of which every statement fits the file.
#[derive(Debug)]
pub(crate) struct Header {
    /// The tensors in the order of their bytes.
    pub(crate) tensors: Vec<(String, TensorInfo)>,
    /// Where in the file offset 0 is.
    pub(crate) data_start: u64,
}

impl Header {
    /// Reads and checks the header of a file of `len` bytes. Nothing is allocated before its length is known to fit.
    pub(crate) fn read(path: &Path, file: &File, len: u64) -> Result<Self> {
        let bytes = json_length(path, file, len)?;
        let mut json = vec![0; bytes as usize];
        file.read_exact_at(&mut json, LENGTH_BYTES).map_err(|e| Error::io("read", path, e))?;
        let Entries(mut tensors) = serde_json::from_slice(&json)
            .map_err(|e| WeightsError::BadHeader { path: path.into(), what: e.to_string() })?;
        tensors.sort_by(|(a, x), (b, y)| x.data_offsets.cmp(&y.data_offsets).then_with(|| a.cmp(b)));
        let data_start = LENGTH_BYTES + bytes;
        check(path, &tensors, data_start, len)?;
        Ok(Self { tensors, data_start })
    }
}

/// Reads the length field and compares it with the size of the file.
fn json_length(path: &Path, file: &File, len: u64) -> Result<u64> {
    if len < LENGTH_BYTES {
        return Err(WeightsError::HeaderCut { path: path.into(), needed: LENGTH_BYTES, found: len }.into());
    }
    let mut field = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut field, 0).map_err(|e| Error::io("read", path, e))?;
    let bytes = u64::from_le_bytes(field);
    if bytes <= MAX_HEADER_BYTES.min(len - LENGTH_BYTES) {
        return Ok(bytes);
    }
    let path = path.to_path_buf();
    // torch.save writes an archive, and before that wrote a plain pickle.
    if field.starts_with(b"PK\x03\x04") || matches!(field, [0x80, 2..=5, ..]) {
        Err(WeightsError::Pickle { path }.into())
    } else if bytes > MAX_HEADER_BYTES {
        Err(WeightsError::HeaderTooLong { path, bytes, most: MAX_HEADER_BYTES }.into())
    } else {
        Err(WeightsError::HeaderCut { path, needed: LENGTH_BYTES + bytes, found: len }.into())
    }
}

/// The entries as they stand, so that a key given twice can be noticed.
struct Entries(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut tensors = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((key, map.next_value()?));
                    }
                }
                Ok(Entries(tensors))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The tensors, in the order of their bytes, must cover the rest of the file exactly once.
fn check(
    path: &Path,
    tensors: &[(String, TensorInfo)],
    data_start: u64,
    len: u64,
) -> Result<(), WeightsError> {
    let path = || path.to_path_buf();
    let mut keys = BTreeSet::new();
    let mut end = 0;
    let mut last = "";
    for (key, info) in tensors {
        let (begin, after) = info.data_offsets;
        if !keys.insert(key) {
            return Err(WeightsError::DuplicateKey { path: path(), key: key.clone() });
        }
        if after.checked_sub(begin) != bytes_of(info) || bytes_of(info).is_none() {
            return Err(WeightsError::BadOffsets {
                path: path(),
                key: key.clone(),
                begin,
                end: after,
                shape: info.shape.clone(),
                dtype: info.dtype.to_string(),
            });
        }
        if begin < end {
            return Err(WeightsError::Overlap { path: path(), first: last.into(), second: key.clone() });
        }
        if begin > end {
            return Err(WeightsError::Hole { path: path(), key: key.clone(), bytes: begin - end });
        }
        (end, last) = (after, key);
    }
    if end != len - data_start {
        let expected = data_start.saturating_add(end);
        return Err(WeightsError::WrongLength { path: path(), expected, found: len });
    }
    Ok(())
}

/// Bytes that the shape and the type take; `None` if that is no number of whole bytes.
fn bytes_of(info: &TensorInfo) -> Option<u64> {
    let elements = info.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))?;
    let bits = elements.checked_mul(info.dtype.bitsize() as u64)?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// The header, length field included, of F32 tensors that follow each other in the order of their names.
///
/// Padded so that the data begins on a multiple of eight bytes. The order of everything is fixed, so equal weights
/// are equal files.
pub(crate) fn to_bytes<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, &'a [u64])>,
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Entry<'a> {
        Metadata(&'a BTreeMap<String, String>),
        Tensor(TensorInfo),
    }
    let mut entries = BTreeMap::from([(METADATA, Entry::Metadata(metadata))]);
    let mut begin = 0;
    for (name, shape) in tensors {
        let end = begin + shape.iter().product::<u64>() * 4;
        entries.insert(
            name,
            Entry::Tensor(TensorInfo { dtype: Dtype::F32, shape: shape.into(), data_offsets: (begin, end) }),
        );
        begin = end;
    }
    let mut json = serde_json::to_vec(&entries)?;
    json.resize(json.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}
