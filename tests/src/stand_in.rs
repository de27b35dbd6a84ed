//! Libraries in C that stand in for what a test cannot have: GPUs, and a disk that fails when told to.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the stand-in (`csrc/nccl_stand_in.c` says what it can be told) into `folder`; the library that `ILM_NCCL_LIBRARY` and
/// `ILM_CUDART_LIBRARY` may name.
///
/// # Panics
/// If there is no C compiler.
pub fn build_nccl_stand_in(folder: &Path) -> PathBuf {
    compile("nccl_stand_in", folder)
}

/// Compiles the failing disk (`csrc/slow_disk.c` says what it can be told) into `folder`; the library for `LD_PRELOAD`.
///
/// # Panics
/// If there is no C compiler.
pub fn build_slow_disk(folder: &Path) -> PathBuf {
    compile("slow_disk", folder)
}

fn compile(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(format!("lib{name}.so"));
    let source = format!("{}/csrc/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let mut compiler = Command::new("cc");
    compiler
        .args(["-O1", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(&library)
        .args([&source, "-lrt", "-ldl"]);
    let status = compiler.status().unwrap_or_else(|error| panic!("cannot start cc: {error}"));
    assert!(status.success(), "{source} does not compile");
    library
}
