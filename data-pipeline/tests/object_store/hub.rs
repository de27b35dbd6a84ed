//! Sets on the Hugging Face hub: named by folder, glob or file they are the same, and the token stays with the hub.

use std::process::{Command, Stdio};

use data_pipeline::{Dataset, Error, Location, Sources, StoreConfig};

use super::{FILES, at, local, locals, open, rows, stand_in::StandIn};

const TOKEN: &str = "hf_madeUpForThisTest";

fn name(file: &str) -> &str {
    file.rsplit('/').next().unwrap()
}

/// A hub that has the shards in a folder of their own, and other files beside them.
fn hub() -> StandIn {
    let shards = FILES.map(|file| (format!("data/{}", name(file)), std::fs::read(local(file)).unwrap()));
    let others = [".gitattributes", "data/README.md", "data/deeper/x.parquet"];
    let spaced = ("odd folder/a.parquet".to_owned(), std::fs::read(local(FILES[1])).unwrap());
    let others = others.map(|path| (path.to_owned(), b"no shard".to_vec()));
    StandIn::start(shards.into_iter().chain(others).chain([spaced]))
}

fn place(rest: &str) -> Location {
    format!("hf://datasets/org/set{rest}").into()
}

/// Those of some requests that begin with a word.
fn count(requests: &[String], start: &str) -> usize {
    requests.iter().filter(|head| head.starts_with(start)).count()
}

#[test]
fn a_folder_or_a_glob_is_the_same_set_as_its_files() {
    let hub = hub();
    let here = open(&Sources::default(), &locals(), None).unwrap();
    let wanted = rows(&here);
    let files = FILES.map(|file| format!("hf://datasets/org/set/data/{}", name(file))).to_vec();
    let places = [
        place("/data"),
        place("/data/"),
        place("@main/data"),
        place("@refs%2Fconvert%2Fparquet/data"),
        place("@refs%2Fconvert%2Fparquet/data/*.parquet"),
        place("/data/*-of-*.parquet"),
        place("/d*/[tv]*.parquet"),
        files.into(),
    ];
    for location in places {
        let there = open(&Sources::new(at(hub.port)), &location, None).unwrap();
        assert_eq!(there.fingerprint(), here.fingerprint(), "{location}");
        assert_eq!(there.groups(), here.groups());
        for row in (0..there.len()).step_by(100) {
            assert_eq!(there.example(row).unwrap().unwrap(), wanted[row as usize], "row {row} of {location}");
        }
    }
    let other = open(&Sources::new(at(hub.port)), &place("/odd folder"), None).unwrap();
    let alone = open(&Sources::default(), &local(FILES[1]).into(), None).unwrap();
    assert_eq!(rows(&other), rows(&alone));
}

#[test]
fn a_list_is_read_to_its_last_page_and_only_shards_are_looked_up() {
    let hub = hub();
    for (rest, lists) in [("/data/", 2), ("/data/t*.parquet", 2), ("/*/*-of-*.parquet", 4)] {
        hub.take_requests();
        open(&Sources::new(at(hub.port)), &place(rest), None).unwrap();
        let requests = hub.take_requests();
        assert_eq!(count(&requests, "GET /api/"), lists, "{rest}: {requests:?}");
        let shards = if rest.contains("t*") { 1 } else { 2 };
        assert_eq!(count(&requests, "HEAD "), shards, "{rest}: {requests:?}");
    }
}

#[test]
fn what_is_not_there_is_told_by_its_place() {
    let hub = hub();
    let refused = |location: Location| open(&Sources::new(at(hub.port)), &location, None).unwrap_err();
    for rest in ["/none", "/data/x*.parquet", "@v9/data/", "@v9/data/x.parquet"] {
        let error = refused(place(rest));
        let message = error.to_string();
        assert!(error.is_config() && message.contains(rest), "{message}");
        assert!(message.ends_with("check name and revision, and that HF_TOKEN may read it"), "{message}");
    }
    let shard = format!("/data/{}", name(FILES[0]));
    let twice = vec!["hf://datasets/org/set/data".to_owned(), format!("hf://datasets/org/set@main{shard}")];
    assert!(refused(twice.into()).to_string().contains(&format!("set{shard}' is named twice")));
}

#[test]
fn a_list_that_fails_is_asked_for_again_and_then_given_up() {
    let hub = hub();
    hub.behaviour().failing = 2;
    let dataset = open(&Sources::new(at(hub.port)), &place("/data/"), None).unwrap();
    assert_eq!(dataset.len(), open(&Sources::default(), &locals(), None).unwrap().len());
    assert_eq!(count(&hub.take_requests(), "GET /api/"), 4);

    hub.behaviour().failing = usize::MAX;
    let error = open(&Sources::new(at(hub.port)), &place("/data/"), None).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Remote { tries: 4, .. }), "{message}");
    assert!(message.starts_with("cannot list 'hf://datasets/org/set/data/': "), "{message}");
    assert!(message.contains("status code: 500") && message.contains("on purpose"), "{message}");
}

#[test]
fn a_page_that_is_missing_is_not_the_end_of_the_list() {
    let hub = hub();
    let whole = open(&Sources::new(at(hub.port)), &place("/data"), None).unwrap();
    hub.behaviour().missing_pages = 2;
    let dataset = open(&Sources::new(at(hub.port)), &place("/data"), None).unwrap();
    assert_eq!(dataset.fingerprint(), whole.fingerprint());

    hub.behaviour().missing_pages = usize::MAX;
    let error = open(&Sources::new(at(hub.port)), &place("/data"), None).unwrap_err();
    assert!(matches!(error, Error::Remote { tries: 4, .. }), "{error}");
    assert!(error.to_string().contains("status code: 404"), "{error}");
}

#[test]
fn an_endpoint_is_not_both_the_hub_and_a_store_of_buckets() {
    let hub = hub();
    let file = format!("hf://datasets/org/set/data/{}", name(FILES[0]));
    for bucket in ["s3://bucket/a.parquet", "gs://bucket/a.parquet"] {
        let sources = Sources::new(at(hub.port));
        let both: Location = vec![file.clone(), bucket.to_owned()].into();
        let error = open(&sources, &both, None).unwrap_err();
        assert!(error.is_config() && error.to_string().contains(bucket), "{error}");
        assert!(hub.take_requests().is_empty(), "it is refused before a server is asked");
        // A place of its own is another split's, which shares the clients.
        assert!(open(&sources, &bucket.into(), None).unwrap_err().is_config());
        open(&sources, &file.as_str().into(), None).unwrap();
        hub.take_requests();
    }
}

#[test]
fn a_list_is_not_followed_to_another_server() {
    let (hub, other) = (hub(), hub());
    hub.behaviour().pages_at = Some(format!("http://127.0.0.1:{}", other.port));
    let error = open(&Sources::new(at(hub.port)), &place("/data/"), None).unwrap_err();
    assert!(error.to_string().contains("another server"), "{error}");
    assert!(other.take_requests().is_empty());
}

/// What the test below runs with a token, since variables are those of a whole process.
#[test]
#[ignore = "another test runs it as a process of its own"]
fn reader() {
    let Ok(port) = std::env::var("ILM_TEST_HUB") else { return };
    let sources = Sources::new(StoreConfig { anonymous: false, ..at(port.parse().unwrap()) });
    let dataset = open(&sources, &place("/data"), None).unwrap();
    assert_eq!(rows(&dataset), rows(&open(&Sources::default(), &locals(), None).unwrap()));
    // The same file, but not by a place of the hub.
    let plain = format!("http://127.0.0.1:{port}/datasets/org/set/resolve/main/data/{}", name(FILES[0]));
    let error = open(&sources, &plain.into(), None).unwrap_err();
    assert!(error.to_string().contains("status code: 401"), "{error}");
    assert!(!format!("{sources:?} {dataset:?}").contains(TOKEN));
}

/// The same with a token that the hub does not know.
#[test]
#[ignore = "another test runs it as a process of its own"]
fn refused_reader() {
    let Ok(port) = std::env::var("ILM_TEST_HUB") else { return };
    let sources = Sources::new(StoreConfig { anonymous: false, ..at(port.parse().unwrap()) });
    let message = open(&sources, &place("/data"), None).unwrap_err().to_string();
    assert!(message.contains("status code: 401") && message.contains("HF_TOKEN was refused"), "{message}");
    assert!(!message.contains(TOKEN), "{message}");
}

/// Runs a test in a process that has the token.
fn succeeds_with_token(test: &str, hub: &StandIn) -> bool {
    let read = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .env("HF_TOKEN", TOKEN)
        .env("ILM_TEST_HUB", hub.port.to_string())
        .stdout(Stdio::null())
        .status();
    read.unwrap().success()
}

#[test]
fn the_token_is_sent_to_the_hub_and_nowhere_else() {
    let (hub, elsewhere) = (hub(), hub());
    {
        let mut behaviour = hub.behaviour();
        behaviour.token = Some(TOKEN.to_owned());
        behaviour.files_at = Some(elsewhere.port);
    }
    assert!(succeeds_with_token("hub::reader", &hub));
    let requests = elsewhere.take_requests();
    assert!(count(&requests, "GET /datasets/") > 0);
    assert!(!requests.iter().any(|head| head.contains(TOKEN)), "{requests:?}");

    // Without a token the message says what is missing.
    let message = open(&Sources::new(at(hub.port)), &place("/data"), None).unwrap_err().to_string();
    assert!(message.contains("status code: 401") && message.contains("set HF_TOKEN if"), "{message}");

    hub.behaviour().token = Some("hf_ofSomebodyElse".to_owned());
    assert!(succeeds_with_token("hub::refused_reader", &hub));
}
