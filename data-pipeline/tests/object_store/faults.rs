//! A store that fails now and then is read as if it did not; one that always fails is given up with one sentence.

use data_pipeline::{Dataset, Error, Location, Sources, StoreConfig};

use test_support::s3::BUCKET;

use super::{
    FILES, FOLDER, at, first_rows, local, locals, open,
    proxy::{Fault, Faults, Proxy},
    rows, serve,
};

fn set() -> Location {
    format!("s3://{BUCKET}/{FOLDER}").into()
}

#[test]
fn rows_are_the_same_although_every_third_request_fails() {
    let server = serve();
    let proxy = Proxy::start(server.port);
    proxy.set(Faults::Some { seed: 5, percent: 33 });
    let wanted = rows(&open(&Sources::default(), &locals(), None).unwrap());
    let patient = StoreConfig { retries: Some(12), ..at(proxy.port) };
    // Until each kind of fault has been met.
    for _ in 0..8 {
        let dataset = open(&Sources::new(patient.clone()), &set(), None).unwrap();
        dataset.read_ahead(&first_rows(&dataset));
        assert_eq!(rows(&dataset), wanted);
    }
    let injected = proxy.injected();
    assert_eq!(injected.len(), 7, "{injected:?}");
}

#[test]
fn a_store_that_always_fails_is_given_up_with_url_range_and_cause() {
    let server = serve();
    let proxy = Proxy::start(server.port);
    let impatient = StoreConfig { retries: Some(2), ..at(proxy.port) };
    let dataset = open(&Sources::new(impatient.clone()), &set(), None).unwrap();
    let cases = [
        (Fault::Status(500), 3, "status code: 500"),
        (Fault::Status(503), 3, "on purpose"),
        (Fault::Stalled, 3, "timed out"),
        (Fault::Truncated, 3, "body"),
        (Fault::Short, 3, " bytes"),
        (Fault::Dropped, 3, "connection closed"),
        (Fault::Status(403), 1, "403"),
        (Fault::Status(404), 1, "404"),
    ];
    for (fault, tries, cause) in cases {
        proxy.set(Faults::All(fault));
        proxy.take_requests();
        let error = dataset.example(0).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Remote { tries: counted, .. } if counted == tries), "{message}");
        assert!(!message.contains('\n') && message.contains("cannot read bytes "), "{message}");
        assert!(
            message.contains(&format!("of 's3://{BUCKET}/{FOLDER}/train-00004-of-00008.parquet'")),
            "{message}"
        );
        assert!(message.contains(cause), "'{cause}' is not in: {message}");
        assert_eq!(proxy.take_requests().len(), tries, "{fault:?}");
    }
    proxy.set(Faults::All(Fault::Status(503)));
    let error = open(&Sources::new(impatient), &set(), None).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot look up 's3://{BUCKET}/{FOLDER}'")), "{error}");

    // What failed is asked for again: nothing of an error stays.
    proxy.set(Faults::None);
    assert!(dataset.example(0).is_ok());
}

#[test]
fn an_error_in_the_background_is_reported_to_the_one_who_asks() {
    let server = serve();
    let proxy = Proxy::start(server.port);
    let impatient = StoreConfig { retries: Some(0), ..at(proxy.port) };
    let dataset = open(&Sources::new(impatient), &set(), None).unwrap();
    proxy.set(Faults::All(Fault::Status(500)));
    proxy.take_requests();
    dataset.read_ahead(&first_rows(&dataset));
    super::wait_until("all have failed", || {
        proxy.injected().values().sum::<usize>() == dataset.groups().len() && proxy.in_flight() == 0
    });
    assert!(matches!(dataset.example(0), Err(Error::Remote { .. })));
    proxy.set(Faults::None);
    assert!(dataset.example(0).is_ok());
}

#[test]
fn an_object_that_changes_under_a_run_is_not_mixed_with_the_old_one() {
    let server = serve();
    let dataset = open(&Sources::new(at(server.port)), &set(), None).unwrap();
    let name = FILES[0].rsplit('/').next().unwrap();
    let mut bytes = std::fs::read(local(FILES[0])).unwrap();
    bytes[1000] ^= 1;
    server.put(&format!("{FOLDER}/{name}"), &bytes);
    let error = dataset.example(0).unwrap_err();
    assert!(matches!(&error, Error::Changed { url } if url.ends_with(name)), "{error}");
}
