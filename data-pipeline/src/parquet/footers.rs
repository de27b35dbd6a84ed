//! Footers kept from one start to the next in one file: a set of thousands of shards then opens without reading them.
//!
//! The file may be damaged, stale, deleted or written by several processes at once: what does not fit is read again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::source::{Location, SourceFile};

/// First bytes of the file; another format gets another number.
const MAGIC: &[u8; 8] = b"ILMFOOT1";

/// Files with their footers, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Footers {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    size: u64,
    version: String,
    footer: Bytes,
}

impl Footers {
    /// Reads a file that was saved for the same location; anything else counts as empty.
    pub fn load(path: &Path, location: &Location) -> Self {
        let Ok(bytes) = fs::read(path) else { return Self::default() };
        let footers = read(&Bytes::from(bytes), location);
        if footers.is_none() {
            tracing::debug!("'{}' holds no footers of '{location}'; it is written anew", path.display());
        }
        footers.unwrap_or_default()
    }

    /// Writes the file; a failure costs only the time of the next start.
    pub fn save(&self, path: &Path, location: &Location) {
        let temporary = temporary(path);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&temporary, self.encode(location)))
            .and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            tracing::warn!("cannot keep footers in '{}': {error}", path.display());
        }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name, size and version of every file.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.size, entry.version.as_str()))
    }

    /// The footer of a file that has not changed.
    pub fn get(&self, file: &SourceFile) -> Option<Bytes> {
        let entry = &self.entries[*self.by_name.get(&file.name)?];
        (entry.size == file.size && entry.version == file.version).then(|| entry.footer.clone())
    }

    pub fn add(&mut self, file: &SourceFile, footer: Bytes) {
        let SourceFile { name, size, version, .. } = file;
        self.push(Entry { name: name.clone(), size: *size, version: version.clone(), footer });
    }

    fn push(&mut self, entry: Entry) {
        self.by_name.insert(entry.name.clone(), self.entries.len());
        self.entries.push(entry);
    }

    /// Magic, checksum of the rest, location, entries; every text and footer after its length.
    fn encode(&self, location: &Location) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut put = |part: &[u8]| {
            rest.extend_from_slice(&(part.len() as u64).to_le_bytes());
            rest.extend_from_slice(part);
        };
        put(location.places().join("\n").as_bytes());
        for entry in &self.entries {
            put(entry.name.as_bytes());
            put(&entry.size.to_le_bytes());
            put(entry.version.as_bytes());
            put(&entry.footer);
        }
        [&MAGIC[..], &xxh3_128(&rest).to_le_bytes(), &rest].concat()
    }
}

fn read(bytes: &Bytes, location: &Location) -> Option<Footers> {
    let checked = MAGIC.len() + 16;
    let sum = bytes.get(MAGIC.len()..checked)?;
    if !bytes.starts_with(MAGIC) || xxh3_128(&bytes[checked..]).to_le_bytes() != sum {
        return None;
    }
    let mut rest = bytes.slice(checked..);
    if *take(&mut rest)? != *location.places().join("\n").as_bytes() {
        return None;
    }
    let mut footers = Footers::default();
    while !rest.is_empty() {
        footers.push(Entry {
            name: text(&mut rest)?,
            size: u64::from_le_bytes(take(&mut rest)?[..].try_into().ok()?),
            version: text(&mut rest)?,
            footer: take(&mut rest)?,
        });
    }
    Some(footers)
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(8).filter(|&end| end <= rest.len())?;
    Some(rest.split_to(end).slice(8..))
}

fn text(rest: &mut Bytes) -> Option<String> {
    String::from_utf8(take(rest)?.into()).ok()
}

/// A name that no other process or thread writes to.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footers() -> Footers {
        let mut footers = Footers::default();
        for (name, footer) in [("s3://b/a.parquet", &b"one"[..]), ("b.parquet", b"")] {
            let (name, version) = (name.to_owned(), "\"v\"".to_owned());
            footers.push(Entry { name, size: 7, version, footer: Bytes::copy_from_slice(footer) });
        }
        footers
    }

    #[test]
    fn what_is_saved_is_loaded_for_the_same_location_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index/train.idx");
        assert!(Footers::load(&path, &"a".into()).is_empty());
        footers().save(&path, &"a".into());
        assert_eq!(Footers::load(&path, &"a".into()), footers());
        assert!(Footers::load(&path, &"b".into()).is_empty());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn damage_anywhere_makes_it_empty() {
        let sound = footers().encode(&"a".into());
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged.into(), &"a".into()), None, "byte {at}");
            assert_eq!(read(&Bytes::copy_from_slice(&sound[..at]), &"a".into()), None, "cut at {at}");
        }
    }
}
