//! The same set by every way of naming it, and row groups that are fetched before they are asked for.

use data_pipeline::{Dataset, DatasetManifest, Location, Sources, StoreConfig};

use test_support::s3::BUCKET;

use super::{FILES, FOLDER, at, first_rows, local, locals, open, proxy::Proxy, rows, serve, wait_until};

#[test]
fn a_set_is_the_same_wherever_it_lies() {
    let server = serve();
    let name = |file: &str| file.rsplit('/').next().unwrap().to_owned();
    for key in ["sets/notes.txt", "sets/owt/deeper/x.parquet", "sets/owt/readme"] {
        server.put(key, b"not a shard");
    }
    for file in FILES {
        let key = format!("datasets/org/set/resolve/v1/{}", name(file));
        server.put(&key, &std::fs::read(local(file)).unwrap());
    }
    let here = open(&Sources::default(), &locals(), None).unwrap();
    let wanted = rows(&here);

    let s3 = at(server.port);
    let http = |file| format!("http://127.0.0.1:{}/{BUCKET}/{FOLDER}/{}", server.port, name(file));
    let hub =
        StoreConfig { endpoint: Some(format!("http://127.0.0.1:{}/{BUCKET}", server.port)), ..s3.clone() };
    let url = |rest: &str| -> Location { format!("s3://{BUCKET}/{rest}").into() };
    let cases: [(&StoreConfig, Location); 7] = [
        (&s3, url(FOLDER)),
        (&s3, url(&format!("{FOLDER}/"))),
        (&s3, url(&format!("{FOLDER}/*-of-*.parquet"))),
        (&s3, url("sets/o*t/[tv]*.parquet")),
        (&s3, FILES.map(|file| format!("s3://{BUCKET}/{FOLDER}/{}", name(file))).to_vec().into()),
        (&s3, FILES.map(http).to_vec().into()),
        (&hub, FILES.map(|file| format!("hf://datasets/org/set@v1/{}", name(file))).to_vec().into()),
    ];
    for (store, location) in cases {
        let there = open(&Sources::new(store.clone()), &location, None).unwrap();
        assert_eq!(there.fingerprint(), here.fingerprint(), "{location}");
        assert_eq!(DatasetManifest::difference(&here.manifest(), &there.manifest()), None);
        assert_eq!(there.groups(), here.groups());
        let every = if location == url(FOLDER) { 1 } else { 50 };
        for row in (0..there.len()).step_by(every) {
            assert_eq!(there.example(row).unwrap().unwrap(), wanted[row as usize], "row {row} of {location}");
        }
    }

    let refused = |location: Location| open(&Sources::new(s3.clone()), &location, None).unwrap_err();
    for nothing in ["none.parquet", "sets/owt/x*", "elsewhere/"] {
        let error = refused(url(nothing));
        assert!(error.is_config() && error.to_string().contains(nothing), "{error}");
    }
    let twice = refused(vec![format!("s3://{BUCKET}/{FOLDER}"), format!("s3://{BUCKET}/{FOLDER}/t*")].into());
    assert!(twice.to_string().contains("is named twice"), "{twice}");
}

#[test]
fn announced_row_groups_are_fetched_side_by_side_and_once() {
    let server = serve();
    let proxy = Proxy::start(server.port);
    let dataset =
        open(&Sources::new(at(proxy.port)), &format!("s3://{BUCKET}/{FOLDER}").into(), None).unwrap();
    let here = open(&Sources::default(), &locals(), None).unwrap();
    let firsts = first_rows(&dataset);
    proxy.take_requests();

    proxy.hold(true);
    dataset.read_ahead(&firsts[..4]);
    wait_until("four requests are in flight although no row was asked for", || proxy.in_flight() == 4);
    std::thread::scope(|scope| {
        // One who asks for a group in flight waits for it.
        let asked = scope.spawn(|| dataset.example(firsts[2]).unwrap());
        proxy.hold(false);
        assert_eq!(asked.join().unwrap(), here.example(firsts[2]).unwrap());
    });
    wait_until("all are answered", || proxy.in_flight() == 0);
    for &row in &firsts[..4] {
        assert_eq!(dataset.example(row + 1).unwrap(), here.example(row + 1).unwrap());
    }
    let requests = proxy.take_requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    dataset.example(firsts[4]).unwrap();
    assert_eq!(proxy.take_requests().len(), 1, "a group that was not announced");
}
