//! Compiles the MPI shim, lets the executables find libtorch without `LD_LIBRARY_PATH`, and embeds configuration files
//! anew when they change.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=csrc/mpi_in_place.c");
    println!("cargo::rerun-if-changed=../configs");
    println!("cargo::rerun-if-env-changed=MPICC");
    let compiler = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    cc::Build::new().compiler(compiler).file("csrc/mpi_in_place.c").compile("ilm_mpi_in_place");

    // Set by the build script of torch-sys, which is why that crate is a direct dependency.
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{libtorch}");
    }
}
