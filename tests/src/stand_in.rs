//! A stand-in for NCCL and the CUDA runtime over host memory, for tests of what the worker does with them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the stand-in (`csrc/nccl_stand_in.c` says what it can be told) into `folder`; the library that `ILM_NCCL_LIBRARY` and
/// `ILM_CUDART_LIBRARY` may name.
///
/// # Panics
/// If there is no C compiler.
pub fn build_nccl_stand_in(folder: &Path) -> PathBuf {
    let library = folder.join("libnccl_stand_in.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/csrc/nccl_stand_in.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-pthread", "-o"]).arg(&library).args([source, "-lrt"]);
    let status = compiler.status().unwrap_or_else(|error| panic!("cannot start cc: {error}"));
    assert!(status.success(), "the stand-in for NCCL does not compile");
    library
}
