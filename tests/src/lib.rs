//! What the tests of every crate share: where the reference vectors and the small real data sets lie.
//!
//! Both folders can be pointed at other sets of the same format with `ILM_GOLDEN_DIR` and `ILM_DATA_DIR`.

use std::path::PathBuf;

/// The folder of the reference implementation's inputs and outputs (`manifest.json` describes every tensor).
pub fn golden_dir() -> PathBuf {
    dir_from("ILM_GOLDEN_DIR", "golden")
}

/// The folder of small real Parquet sets, tokenizers and damaged files.
pub fn data_dir() -> PathBuf {
    dir_from("ILM_DATA_DIR", "data")
}

fn dir_from(variable: &str, folder: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder),
    }
}
