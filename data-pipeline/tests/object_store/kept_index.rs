//! Footers are read once: the file that keeps them is used while it fits, and never trusted when it does not.

use data_pipeline::{Dataset, Location, Sources};

use test_support::s3::BUCKET;

use super::{FILES, FOLDER, at, local, locals, open, proxy::Proxy, serve};

#[test]
fn footers_of_unchanged_objects_are_not_read_again() {
    let server = serve();
    let proxy = Proxy::start(server.port);
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index/train.idx");
    let here = open(&Sources::default(), &locals(), None).unwrap();
    let footers = || {
        proxy.take_requests();
        let set: Location = format!("s3://{BUCKET}/{FOLDER}").into();
        let dataset = open(&Sources::new(at(proxy.port)), &set, Some(&index)).unwrap();
        assert_eq!(dataset.len(), here.len());
        let reads = proxy.take_requests().iter().filter(|request| request.contains("bytes=")).count();
        (reads, dataset.fingerprint().to_owned())
    };
    assert_eq!(footers(), (2, here.fingerprint().to_owned()));
    assert_eq!(footers(), (0, here.fingerprint().to_owned()));

    let mut bytes = std::fs::read(local(FILES[1])).unwrap();
    bytes[100] ^= 1;
    server.put(&format!("{FOLDER}/{}", FILES[1].rsplit('/').next().unwrap()), &bytes);
    assert_eq!(footers().0, 1, "the object that is new");
    assert_eq!(footers().0, 0, "it has been kept");

    let sound = std::fs::read(&index).unwrap();
    for damaged in [&sound[..sound.len() / 2], b"", &[0; 5000]] {
        std::fs::write(&index, damaged).unwrap();
        assert_eq!(footers().0, 2);
        assert_eq!(std::fs::read(&index).unwrap(), sound, "it is whole again");
    }
}

#[test]
fn a_local_file_that_changed_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (shard, index) = (dir.path().join("a.parquet"), dir.path().join("train.idx"));
    let open = || open(&Sources::default(), &shard.to_str().unwrap().into(), Some(&index)).unwrap();
    std::fs::copy(local(FILES[0]), &shard).unwrap();
    let (first, again) = (open(), open());
    assert_eq!(first.fingerprint(), again.fingerprint());
    std::fs::copy(local(FILES[1]), &shard).unwrap();
    assert_ne!(open().len(), first.len());
}
