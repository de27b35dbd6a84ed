//! Settings that decide how large a micro-batch is, and descriptions of hardware.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use std::path::Path;

use worker::config::{Experiment, load, load_hardware, validate};

fn load_with(experiment: &str, overrides: &[&str]) -> Experiment {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    load(experiment, &overrides, None).unwrap().experiment
}

#[test]
fn limits_of_a_micro_batch_may_be_unset_but_not_zero() {
    let limit = |overrides: &[&str]| {
        let e = load_with("lm1b_ilm", overrides);
        (e.per_device_batch_size, e.trainer.max_tokens_per_micro_batch)
    };
    assert_eq!(limit(&[]), (Some(64), None));
    let set = ["per_device_batch_size=", "trainer.max_tokens_per_micro_batch=4096"];
    assert_eq!(limit(&set), (None, Some(4096)));
    for zero in ["per_device_batch_size=0", "trainer.max_tokens_per_micro_batch=0"] {
        let e = load_with("lm1b_ilm", &[zero]);
        assert!(validate::settings(&e).unwrap_err().to_string().contains("must be at least 1"), "{zero}");
    }
}

#[test]
fn every_shipped_hardware_is_described() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/hardware");
    for file in std::fs::read_dir(folder).unwrap() {
        let name = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(!load_hardware(&name, None).unwrap().description.is_empty(), "{name}");
    }
}
