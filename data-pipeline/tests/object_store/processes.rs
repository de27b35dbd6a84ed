//! Processes that share a cache or are killed: nothing that they leave stops, slows or spoils the next one.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use data_pipeline::{Dataset, Sources, StoreConfig, keyed_rng, uniform_below};

use test_support::s3::BUCKET;

use super::{
    FOLDER, at, first_rows, locals, open,
    proxy::{Fault, Faults, Proxy},
    rows, serve, wait_until,
};

/// A hash of all rows.
fn digest(examples: &[data_pipeline::Example]) -> String {
    let ids = examples.iter().flat_map(|example| &example.tokens);
    let sum = ids.fold(0u64, |sum, id| sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(*id)));
    format!("{sum:016x} of {} rows", examples.len())
}

/// What the processes below do: read all rows through the cache in `ILM_TEST_FOLDER`, and write what they have read.
/// How the store is reached comes from the variables of AWS.
#[test]
#[ignore = "other tests run it as a process of its own"]
fn reader() {
    let Some(dir) = std::env::var_os("ILM_TEST_FOLDER") else { return };
    let dir = Path::new(&dir);
    let config = StoreConfig { retries: Some(3), timeout_secs: 10, ..StoreConfig::default() };
    let sources = Sources::new(config).with_cache(&dir.join("cache"), 1 << 30);
    let set = format!("s3://{BUCKET}/{FOLDER}").into();
    let dataset = open(&sources, &set, Some(&dir.join("train.idx"))).unwrap();
    dataset.read_ahead(&first_rows(&dataset));
    let result = dir.join(format!("{}.digest", std::process::id()));
    std::fs::write(result, digest(&rows(&dataset))).unwrap();
}

fn start_reader(dir: &Path, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::reader", "--ignored", "--test-threads=1"])
        .env("ILM_TEST_FOLDER", dir)
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn digest_of(dir: &Path, mut reader: Child) -> String {
    assert!(reader.wait().unwrap().success());
    std::fs::read_to_string(dir.join(format!("{}.digest", reader.id()))).unwrap()
}

#[test]
fn two_processes_share_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve();
    let proxy = Proxy::start(server.port);
    let wanted = digest(&rows(&open(&Sources::default(), &locals(), None).unwrap()));
    let readers = [start_reader(dir.path(), proxy.port), start_reader(dir.path(), proxy.port)];
    for reader in readers {
        assert_eq!(digest_of(dir.path(), reader), wanted);
    }
    let is_read = |request: &String| request.contains("bytes=");
    assert!(proxy.take_requests().iter().any(is_read));
    assert_eq!(digest_of(dir.path(), start_reader(dir.path(), proxy.port)), wanted);
    assert!(!proxy.take_requests().iter().any(is_read), "a third one finds everything");
}

#[test]
fn a_process_that_is_killed_leaves_nothing_in_the_way_of_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve();
    let proxy = Proxy::start(server.port);
    let wanted = digest(&rows(&open(&Sources::default(), &locals(), None).unwrap()));
    proxy.set(Faults::All(Fault::Late));
    let mut rng = keyed_rng(3, data_pipeline::Purpose::Drop, 0, 0);
    for _ in 0..6 {
        // Somewhere from the listing to the last row group; later readers have less to fetch.
        let requests = 1 + uniform_below(&mut rng, 9) as usize;
        let count = || proxy.injected().values().sum::<usize>();
        let before = count();
        let reader = std::sync::Mutex::new(start_reader(dir.path(), proxy.port));
        let ended = || reader.lock().unwrap().try_wait().unwrap().is_some();
        wait_until("the reader is at work", || count() >= before + requests || ended());
        // Whoever has ended already cannot be killed, which is no error.
        let mut reader = reader.into_inner().unwrap();
        let _ = reader.kill();
        reader.wait().unwrap();
    }
    // A file that was being written when its process was killed.
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let half = dir.path().join(format!("cache/unfinished-{}-{}-0", host.trim(), dead.id()));
    std::fs::create_dir_all(dir.path().join("cache")).unwrap();
    std::fs::write(&half, "half").unwrap();

    proxy.set(Faults::None);
    assert_eq!(digest_of(dir.path(), start_reader(dir.path(), proxy.port)), wanted);
    let left: Vec<_> = std::fs::read_dir(dir.path().join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.is_dir())
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // The same in this process, to see that the folder is as good as one that nobody was killed at.
    let sources = Sources::new(at(proxy.port)).with_cache(&dir.path().join("cache"), 1 << 30);
    proxy.take_requests();
    let dataset = open(&sources, &format!("s3://{BUCKET}/{FOLDER}").into(), None).unwrap();
    assert_eq!(digest(&rows(&dataset)), wanted);
    assert!(!proxy.take_requests().iter().any(|request| request.contains("bytes=")));
}
