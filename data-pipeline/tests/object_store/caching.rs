//! The disk cache: ranges are fetched once, and whatever happens to the folder, rows are right.

use std::path::{Path, PathBuf};

use data_pipeline::{Dataset, Location, ParquetDataset, Sources};

use test_support::s3::BUCKET;

use super::{FOLDER, at, locals, open, proxy::Proxy, rows, serve};

fn set() -> Location {
    format!("s3://{BUCKET}/{FOLDER}").into()
}

fn cached(port: u16, dir: &Path) -> ParquetDataset {
    let sources = Sources::new(at(port)).with_cache(&dir.join("cache"), 1 << 30);
    open(&sources, &set(), Some(&dir.join("index/train.idx"))).unwrap()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(dir.join("cache")).unwrap().map(|entry| entry.unwrap().path());
    folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_was_read_once_is_read_again_without_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve();
    let wanted = rows(&open(&Sources::default(), &locals(), None).unwrap());
    assert_eq!(rows(&cached(server.port, dir.path())), wanted);
    let port = server.port;
    drop(server);
    let again = cached(port, dir.path());
    assert_eq!(rows(&again), wanted);
    assert_eq!(again.fingerprint(), open(&Sources::default(), &locals(), None).unwrap().fingerprint());

    // Without the bytes the missing server is the error.
    std::fs::remove_dir_all(dir.path().join("cache")).unwrap();
    assert!(cached(port, dir.path()).example(0).unwrap_err().to_string().contains("cannot read bytes"));
}

#[test]
fn damaged_and_deleted_entries_are_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve();
    let proxy = Proxy::start(server.port);
    let wanted = rows(&cached(proxy.port, dir.path()));
    let gets = || proxy.take_requests().iter().filter(|request| request.contains("bytes=")).count();
    gets();
    assert_eq!(rows(&cached(proxy.port, dir.path())), wanted);
    assert_eq!(gets(), 0);

    let entries_before = entries(dir.path());
    let damaged = entries_before.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(damaged, bytes).unwrap();
    assert_eq!(rows(&cached(proxy.port, dir.path())), wanted);
    assert_eq!(gets(), 1, "the one that was damaged");
    assert_eq!(rows(&cached(proxy.port, dir.path())), wanted);
    assert_eq!(gets(), 0, "it is whole again");

    let reading = cached(proxy.port, dir.path());
    for row in 0..reading.len() {
        if row % 100 == 0 {
            std::fs::remove_dir_all(dir.path().join("cache")).ok();
        }
        assert_eq!(reading.example(row).unwrap().unwrap(), wanted[row as usize]);
    }
    assert!(gets() > 0);
    assert_eq!(rows(&cached(proxy.port, dir.path())), wanted);
}
