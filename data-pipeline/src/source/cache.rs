//! Ranges of remote files kept on a local disk, up to a bound; shared by ranks and runs without locks.
//!
//! An entry is a file of its own that appears by a rename and carries a checksum, so whatever happens to the folder
//! (kill, full disk, flipped bits, deletion), a range is either there and right or fetched again.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::remote::Object;

/// First bytes of an entry; another format gets another number.
const MAGIC: &[u8; 8] = b"ILMRANG1";
/// Magic and checksum.
const HEADER: usize = MAGIC.len() + 16;
/// Names of files that are not entries yet start with this, then machine, process and a number.
const UNFINISHED: &str = "unfinished-";
/// After this time an unfinished file is left from a process that is gone.
const OLDEST_UNFINISHED: Duration = Duration::from_secs(3600);

/// A folder of ranges.
#[derive(Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
    max_bytes: u64,
    host: String,
    /// Bytes that this process has added since it looked at the whole folder.
    added: AtomicU64,
    has_warned: AtomicBool,
}

/// What an entry is found by.
struct Key(u128);

impl Key {
    fn new(object: &Object<'_>, range: &Range<u64>) -> Self {
        let Object { url, size, version, .. } = object;
        Self(xxh3_128(format!("{url}\n{size}\n{version}\n{}..{}", range.start, range.end).as_bytes()))
    }

    fn path(&self, folder: &Path) -> PathBuf {
        let name = format!("{:032x}", self.0);
        folder.join(&name[..2]).join(name)
    }

    fn checksum(&self, content: &[u8]) -> [u8; 16] {
        let mut hash = Xxh3::new();
        hash.update(&self.0.to_le_bytes());
        hash.update(content);
        hash.digest128().to_le_bytes()
    }
}

impl DiskCache {
    /// Uses a folder, which is made when something is kept; clears away what killed processes left.
    pub fn new(folder: &Path, max_bytes: u64) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let cache = Self {
            folder: folder.to_owned(),
            max_bytes,
            host: host.trim().replace('/', "_"),
            added: AtomicU64::new(0),
            has_warned: AtomicBool::new(false),
        };
        cache.remove_abandoned();
        cache.make_room();
        cache
    }

    /// The bytes of a range, if they are there and right.
    pub fn get(&self, object: &Object<'_>, range: &Range<u64>) -> Option<Bytes> {
        let key = Key::new(object, range);
        let path = key.path(&self.folder);
        let entry = Bytes::from(fs::read(&path).ok()?);
        let content = entry.slice(HEADER.min(entry.len())..);
        let sound = entry.starts_with(MAGIC)
            && entry.get(MAGIC.len()..HEADER) == Some(&key.checksum(&content))
            && content.len() as u64 == range.end - range.start;
        if !sound {
            tracing::debug!("'{}' is damaged and is fetched again", path.display());
            let _ = fs::remove_file(&path);
            return None;
        }
        // The time of the last use; without it the entry only looks older than it is.
        let _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(content)
    }

    /// Keeps the bytes of a range; a failure costs only another fetch.
    pub fn put(&self, object: &Object<'_>, range: &Range<u64>, content: &Bytes) {
        let size = (HEADER + content.len()) as u64;
        if size > self.max_bytes {
            return;
        }
        let key = Key::new(object, range);
        if let Err(error) = self.write(&key, content)
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("cannot keep fetched bytes in '{}': {error}", self.folder.display());
        }
        // Each process looks often enough that a whole machine of them stays near the bound.
        if self.added.fetch_add(size, Ordering::Relaxed) + size > self.max_bytes / 64 {
            self.make_room();
        }
    }

    fn write(&self, key: &Key, content: &Bytes) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unfinished =
            self.folder.join(format!("{UNFINISHED}{}-{}-{number}", self.host, std::process::id()));
        let path = key.path(&self.folder);
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        let entry = [&MAGIC[..], &key.checksum(content), content].concat();
        let written = fs::write(&unfinished, entry).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Deletes the entries that were not used for the longest time, until some of the bound is free.
    fn make_room(&self) {
        self.added.store(0, Ordering::Relaxed);
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for folder in files_in(&self.folder).filter(|(_, meta)| meta.is_dir()) {
            for (path, meta) in files_in(&folder.0).filter(|(_, meta)| meta.is_file()) {
                entries.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
            }
        }
        let mut bytes: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        if bytes <= self.max_bytes {
            return;
        }
        entries.sort_unstable();
        for (_, size, path) in entries {
            if bytes <= self.max_bytes - self.max_bytes / 16 {
                break;
            }
            // Another process may have deleted it already.
            let _ = fs::remove_file(path);
            bytes -= size;
        }
    }

    fn remove_abandoned(&self) {
        for (path, meta) in files_in(&self.folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(owner) = name.strip_prefix(UNFINISHED) else { continue };
            let old =
                meta.modified().is_ok_and(|time| time.elapsed().unwrap_or_default() > OLDEST_UNFINISHED);
            if old || self.is_of_dead_process(owner) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Whether `HOST-PID-NUMBER` is of this machine but of no process that runs. A mistake (containers that share
    /// name and folder) costs the other one an entry, no more.
    fn is_of_dead_process(&self, owner: &str) -> bool {
        let mut parts = owner.rsplitn(3, '-').skip(1);
        let (pid, host) = (parts.next(), parts.next());
        host == Some(&self.host)
            && pid.and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| {
                Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{pid}")).exists()
            })
    }
}

/// What a folder holds; what cannot be looked at is left out.
fn files_in(folder: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
}

#[cfg(test)]
mod tests {
    use object_store::path::Path as ObjectPath;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        path: ObjectPath,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), path: ObjectPath::from("x") }
        }

        fn cache(&self, max_bytes: u64) -> DiskCache {
            DiskCache::new(self.dir.path(), max_bytes)
        }

        fn object<'a>(&'a self, version: &'a str) -> Object<'a> {
            Object { url: "s3://b/x", path: &self.path, size: 1 << 30, version }
        }

        fn entries(&self) -> Vec<(PathBuf, u64)> {
            let folders = files_in(self.dir.path()).filter(|(_, meta)| meta.is_dir());
            folders.flat_map(|(path, _)| files_in(&path)).map(|(path, meta)| (path, meta.len())).collect()
        }
    }

    fn content(byte: u8) -> Bytes {
        vec![byte; 1000].into()
    }

    #[test]
    fn a_range_is_found_by_object_version_and_range_by_any_process() {
        let fixture = Fixture::new();
        fixture.cache(1 << 20).put(&fixture.object("1"), &(0..1000), &content(7));
        let cache = fixture.cache(1 << 20);
        assert_eq!(cache.get(&fixture.object("1"), &(0..1000)), Some(content(7)));
        assert_eq!(cache.get(&fixture.object("2"), &(0..1000)), None);
        assert_eq!(cache.get(&fixture.object("1"), &(1..1001)), None);
    }

    #[test]
    fn a_damaged_entry_is_deleted() {
        let fixture = Fixture::new();
        let cache = fixture.cache(1 << 20);
        for damage in 0..40 {
            cache.put(&fixture.object("1"), &(0..1000), &content(7));
            let (path, size) = fixture.entries().remove(0);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                0..30 => bytes[damage * (size as usize - 1) / 29] ^= 1,
                _ => bytes.truncate((damage - 30) * 100),
            }
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(&fixture.object("1"), &(0..1000)), None, "damage {damage}");
            assert!(fixture.entries().is_empty());
        }
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let fixture = Fixture::new();
        let cache = fixture.cache(10 * 1100);
        for number in 0..10u8 {
            cache.put(&fixture.object(&number.to_string()), &(0..1000), &content(number));
        }
        // Times of files are coarse: the entries are made older by hand, entry 0 is then used.
        for (path, _) in fixture.entries() {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        }
        assert!(cache.get(&fixture.object("0"), &(0..1000)).is_some());
        for number in 10..15u8 {
            cache.put(&fixture.object(&number.to_string()), &(0..1000), &content(number));
            assert!(fixture.entries().iter().map(|(_, size)| size).sum::<u64>() <= 10 * 1100);
        }
        let there = |number: u8| cache.get(&fixture.object(&number.to_string()), &(0..1000)).is_some();
        assert!(there(0) && (10..15).all(there));
        cache.put(&fixture.object("huge"), &(0..20_000), &vec![0; 20_000].into());
        assert!(there(0), "what is larger than the bound is not kept");
    }

    #[test]
    fn what_killed_processes_left_is_cleared_away_and_what_others_write_is_not() {
        let fixture = Fixture::new();
        let host = fixture.cache(1).host;
        let at = |name: &str| fixture.dir.path().join(format!("{UNFINISHED}{name}"));
        let child = std::process::Command::new("true").spawn().and_then(|mut child| {
            child.wait()?;
            Ok(child.id())
        });
        let [dead, own, elsewhere, old] = [
            at(&format!("{host}-{}-0", child.unwrap())),
            at(&format!("{host}-{}-1", std::process::id())),
            at("another-1-3"),
            at("another-1-4"),
        ];
        for path in [&dead, &own, &elsewhere, &old] {
            fs::write(path, "half").unwrap();
        }
        let file = File::options().write(true).open(&old).unwrap();
        file.set_modified(SystemTime::now() - 2 * OLDEST_UNFINISHED).unwrap();
        fixture.cache(1);
        assert!(!dead.exists() && !old.exists() && own.exists() && elsewhere.exists());
    }

    #[test]
    fn the_folder_may_vanish_or_be_unusable() {
        let fixture = Fixture::new();
        let cache = fixture.cache(1 << 20);
        for _ in 0..2 {
            fs::remove_dir_all(fixture.dir.path()).unwrap();
            assert_eq!(cache.get(&fixture.object("1"), &(0..1000)), None);
            cache.put(&fixture.object("1"), &(0..1000), &content(1));
            assert!(cache.get(&fixture.object("1"), &(0..1000)).is_some());
        }
        let cache = DiskCache::new(Path::new("/dev/null/x"), 1 << 20);
        cache.put(&fixture.object("1"), &(0..1000), &content(1));
        assert_eq!(cache.get(&fixture.object("1"), &(0..1000)), None);
    }
}
