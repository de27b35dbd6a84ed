//! Bytes by range from local files and object stores, behind one kind of file.

mod cache;
mod hub;
mod local;
mod location;
mod remote;
mod retry;
mod shards;
mod store;
mod url;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use object_store::path::Path as ObjectPath;

use self::{
    cache::DiskCache,
    remote::{Object, Remote, version},
    url::{Kind, Place, RemotePlace, has_glob},
};
pub use self::{location::Location, store::StoreConfig};
use crate::error::{Error, Result};

/// Ranges with at most so many bytes between them are fetched as one: a request costs more than they do.
const GAP: u64 = 256 << 10;

/// Clients of stores by the place they are asked at.
type Stores = HashMap<(Kind, String), Arc<Remote>>;

/// Access to the files of any place; clients of stores are shared, also between clones.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    config: StoreConfig,
    cache: Option<Arc<DiskCache>>,
    stores: Arc<Mutex<Stores>>,
}

/// A file as it was when it was found.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Path or URL.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Changes with the content: a store's mark, or the time of the last change.
    pub version: String,
    bytes: Access,
}

#[derive(Debug, Clone)]
enum Access {
    Local,
    Remote { store: Arc<Remote>, path: ObjectPath, cache: Option<Arc<DiskCache>> },
}

impl Sources {
    /// Reaches stores as section `data.store` says.
    pub fn new(config: StoreConfig) -> Self {
        Self { config, cache: None, stores: Arc::default() }
    }

    /// Keeps what stores send in a folder, up to a number of bytes. Ranks and runs may share it, and it may be deleted
    /// at any time.
    pub fn with_cache(self, folder: &Path, max_bytes: u64) -> Self {
        Self { cache: Some(Arc::new(DiskCache::new(folder, max_bytes))), ..self }
    }

    /// Requests in flight, per store.
    pub(crate) fn concurrency(&self) -> usize {
        self.config.concurrency
    }

    /// The files of a location: places in their order, the files of a place by name. Sets that lack some are warned of.
    pub(crate) fn list(&self, location: &Location) -> Result<Vec<SourceFile>> {
        self.connect(location)?;
        let mut files = Vec::new();
        for text in location.places() {
            let found = match url::parse(text)? {
                Place::Local(path) => {
                    local::locate(path)?.into_iter().map(local_file).collect::<Result<_>>()?
                }
                Place::Remote(place) => self.list_remote(&place)?,
            };
            if found.is_empty() {
                return Err(no_files(text));
            }
            shards::warn_of_gaps(text, found.iter().map(|file| file.name.as_str()));
            files.extend(found);
        }
        let mut names = HashSet::new();
        match files.iter().find(|file| !names.insert(file.name.as_str())) {
            Some(file) => Err(Error::Setting(format!(
                "'{}' is named twice by the places '{location}'; its rows would count twice, so name it once",
                file.name
            ))),
            None => Ok(files),
        }
    }

    /// Sets the stores of all places up before one is asked.
    pub(crate) fn connect(&self, location: &Location) -> Result<()> {
        for text in location.places() {
            if let Place::Remote(place) = url::parse(text)? {
                self.store(&place)?;
            }
        }
        Ok(())
    }

    /// A file that was listed at an earlier time.
    pub(crate) fn file(&self, name: &str, size: u64, version: &str) -> Result<SourceFile> {
        let bytes = match url::parse(name)? {
            Place::Local(_) => Access::Local,
            Place::Remote(place) => self.remote(self.store(&place)?, place.object(&place.path)?),
        };
        Ok(SourceFile { name: name.to_owned(), size, version: version.to_owned(), bytes })
    }

    fn list_remote(&self, place: &RemotePlace) -> Result<Vec<SourceFile>> {
        let store = self.store(place)?;
        let url = place.url(&place.path);
        let file = |meta: object_store::ObjectMeta| SourceFile {
            name: place.url(if place.kind == Kind::Http { &place.path } else { meta.location.as_ref() }),
            size: meta.size,
            version: version(&meta),
            bytes: self.remote(store.clone(), meta.location),
        };
        if has_glob(&place.path) {
            let pattern = glob::Pattern::new(&place.path)
                .map_err(|error| Error::BadPattern { location: url.clone(), reason: error.to_string() })?;
            let folder = place.fixed_prefix();
            let deep = place.path[folder.len()..].trim_start_matches('/').contains('/');
            let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
            let matches = |path: &ObjectPath| pattern.matches_with(path.as_ref(), options);
            let found = store.list(place, &place.object(folder)?, deep, matches)?;
            return Ok(by_name(found).map(file).collect());
        }
        let path = place.object(&place.path)?;
        let is_folder = place.path.is_empty() || place.path.ends_with('/');
        if !is_folder && let Some(meta) = store.head(&url, &path)? {
            return Ok(vec![file(meta)]);
        }
        if place.kind == Kind::Http {
            return Ok(Vec::new());
        }
        let is_parquet = |path: &ObjectPath| path.as_ref().ends_with(".parquet");
        let found = store.list(place, &path, false, is_parquet)?;
        Ok(by_name(found).map(file).collect())
    }

    fn remote(&self, store: Arc<Remote>, path: ObjectPath) -> Access {
        Access::Remote { store, path, cache: self.cache.clone() }
    }

    fn store(&self, place: &RemotePlace) -> Result<Arc<Remote>> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (place.kind, place.root.clone());
        if let Some(store) = stores.get(&key) {
            return Ok(store.clone());
        }
        if let Some(endpoint) = &self.config.endpoint
            && stores.keys().any(|(kind, _)| place.kind.excludes(*kind))
        {
            return Err(Error::Setting(format!(
                "data.store.endpoint = '{endpoint}' cannot stand for the hub and for a store of buckets, and '{}' \
                 makes it both; leave it out, or name places of one kind",
                place.url(&place.path)
            )));
        }
        let store = Arc::new(self.config.connect(place)?);
        stores.insert(key, store.clone());
        Ok(store)
    }
}

/// The hub does not tell what is not there from what it may not show.
fn no_files(location: &str) -> Error {
    let error = Error::NoFiles { location: location.to_owned() };
    if location.starts_with("hf://") {
        return Error::Setting(format!("{error}; check name and revision, and that HF_TOKEN may read it"));
    }
    error
}

/// In the order of local paths, which compare folder by folder.
fn by_name(mut found: Vec<object_store::ObjectMeta>) -> impl Iterator<Item = object_store::ObjectMeta> {
    found.sort_by(|a, b| Path::new(a.location.as_ref()).cmp(Path::new(b.location.as_ref())));
    found.into_iter()
}

fn local_file(path: PathBuf) -> Result<SourceFile> {
    let io = |source| Error::Io { action: "open", path: path.clone(), source };
    let meta = path.metadata().map_err(io)?;
    let changed = meta.modified().map_err(io)?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(SourceFile {
        // A name that is not UTF-8 cannot be in a configuration, but a directory may hold one.
        name: path.to_str().map(str::to_owned).ok_or_else(|| {
            Error::Setting(format!("the name of '{}' is not UTF-8; rename the file", path.display()))
        })?,
        size: meta.len(),
        version: changed.to_string(),
        bytes: Access::Local,
    })
}

impl SourceFile {
    /// The last part of its path.
    pub fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// True if reading it waits for a network.
    pub fn is_remote(&self) -> bool {
        matches!(self.bytes, Access::Remote { .. })
    }

    /// The bytes of one range within the file.
    pub fn read_one(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.read(std::slice::from_ref(&range))?.pop().unwrap_or_default())
    }

    /// The bytes of ranges, which must lie within the file; near ones are read as one.
    pub fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let merged = merge(ranges);
        let parts = match &self.bytes {
            Access::Local => read_local(Path::new(&self.name), &merged)?,
            Access::Remote { store, path, cache } => {
                let object = Object { url: &self.name, path, size: self.size, version: &self.version };
                read_remote(store, cache.as_deref(), &object, &merged)?
            }
        };
        let cut = |range: &Range<u64>| {
            if range.is_empty() {
                return Bytes::new();
            }
            let at = merged.partition_point(|part| part.end < range.end);
            let start = (range.start - merged[at].start) as usize;
            parts[at].slice(start..start + (range.end - range.start) as usize)
        };
        Ok(ranges.iter().map(cut).collect())
    }
}

fn read_remote(
    store: &Remote,
    cache: Option<&DiskCache>,
    object: &Object<'_>,
    ranges: &[Range<u64>],
) -> Result<Vec<Bytes>> {
    let Some(cache) = cache else { return store.read(object, ranges) };
    let kept: Vec<Option<Bytes>> = ranges.iter().map(|range| cache.get(object, range)).collect();
    let missing: Vec<Range<u64>> =
        ranges.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(range, _)| range.clone()).collect();
    let mut fetched = store.read(object, &missing)?.into_iter();
    for (range, bytes) in missing.iter().zip(fetched.as_slice()) {
        cache.put(object, range, bytes);
    }
    Ok(kept.into_iter().map(|kept| kept.or_else(|| fetched.next()).unwrap_or_default()).collect())
}

fn read_local(path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
    retry::patiently(|| try_local(path, ranges), std::thread::sleep)
}

/// One try. The file is opened for it: a handle that a server no longer knows stays unknown.
fn try_local(path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let file = File::open(path).map_err(io("open"))?;
    let read = |range: &Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes)).map_err(io("read"))
    };
    ranges.iter().map(read).collect()
}

fn merge(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    let mut sorted: Vec<&Range<u64>> = ranges.iter().filter(|range| !range.is_empty()).collect();
    sorted.sort_by_key(|range| range.start);
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP) => last.end = last.end.max(range.end),
            _ => merged.push(range.clone()),
        }
    }
    merged
}
