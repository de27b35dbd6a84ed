//! Functions of the libraries that libtorch brings into the process and offers no way to call: MKL's products and OpenMP's team.

use std::ffi::{CStr, c_char, c_float, c_int, c_uint, c_void};
use std::sync::LazyLock;

/// `C = alpha op(A) op(B) + beta C` in MKL's C interface: layout, op(A), op(B), m, n, k, alpha, A, lda, B, ldb, beta, C, ldc.
pub(crate) type GemmBf16 = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_float,
    *const c_void,
    c_int,
    *const c_void,
    c_int,
    c_float,
    *mut f32,
    c_int,
);

/// The same for f32 in BLAS's Fortran interface (column-major, all by address).
pub(crate) type Sgemm = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const c_int,
    *const c_int,
    *const c_int,
    *const c_float,
    *const c_float,
    *const c_int,
    *const c_float,
    *const c_int,
    *const c_float,
    *mut c_float,
    *const c_int,
);

/// Runs a function on every thread of a team: function, its argument, threads (0: as many as usual), flags.
pub(crate) type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Whether the calling thread is in a team already; and how many threads a team would have.
pub(crate) type Ask = unsafe extern "C" fn() -> c_int;

/// What was found; another build of libtorch may have other libraries in it.
#[derive(Debug, Default)]
pub(crate) struct Native {
    pub(crate) gemm_bf16: Option<GemmBf16>,
    pub(crate) sgemm: Option<Sgemm>,
    pub(crate) team: Option<Team>,
}

/// OpenMP's team, which libtorch and MKL compute with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Team {
    pub(crate) parallel: Parallel,
    pub(crate) in_parallel: Ask,
    pub(crate) max_threads: Ask,
}

/// The functions of this process.
pub(crate) fn native() -> &'static Native {
    static NATIVE: LazyLock<Native> = LazyLock::new(find);
    &NATIVE
}

fn find() -> Native {
    // libtorch is loaded once something of it is used.
    let _ = tch::get_num_threads();
    // SAFETY: each symbol has the type that its library documents and keeps stable.
    unsafe {
        let team = || {
            Some(Team {
                parallel: symbol(c"GOMP_parallel")?,
                in_parallel: symbol(c"omp_in_parallel")?,
                max_threads: symbol(c"omp_get_max_threads")?,
            })
        };
        Native { gemm_bf16: symbol(c"cblas_gemm_bf16bf16f32"), sgemm: symbol(c"sgemm_"), team: team() }
    }
}

/// # Safety
/// `T` is the function's type.
unsafe fn symbol<T: Copy>(name: &CStr) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: looks a name up among the loaded libraries.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: a function's address, of the type that the caller knows.
    (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
}
