//! What the tests of every crate share: where the reference vectors and the small real data sets lie.
//!
//! Both folders can be pointed at other sets of the same format with `ILM_GOLDEN_DIR` and `ILM_DATA_DIR`.

pub mod s3;
pub mod stand_in;

use std::path::PathBuf;

/// The folder of the reference implementation's inputs and outputs (`manifest.json` describes every tensor).
pub fn golden_dir() -> PathBuf {
    dir_from("ILM_GOLDEN_DIR", "golden")
}

/// The folder of small real Parquet sets, tokenizers and damaged files.
pub fn data_dir() -> PathBuf {
    dir_from("ILM_DATA_DIR", "data")
}

/// The folder of tiny judges: models and expectations of the Python library transformers (`make.py` has written them).
pub fn judges_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("judges")
}

/// The interpreter that has the packages of the tests.
///
/// # Panics
/// If there is none.
pub fn python() -> PathBuf {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../.python-tests/bin/python");
    let python = std::env::var_os("ILM_TEST_PYTHON").map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        python.exists(),
        "the Python packages of the tests are missing: run scripts/setup.sh --test (no {})",
        python.display()
    );
    python
}

fn dir_from(variable: &str, folder: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder),
    }
}
