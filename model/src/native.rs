//! Functions of the libraries that libtorch brings into the process and that tch offers no way to call: MKL's products, OpenMP's team,
//! libtorch's own switch for repeatable kernels.

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

/// Makes libtorch take only such kernels of GPUs as give the same bits every time; false if this libtorch lacks the switch.
pub fn use_repeatable_kernels() -> bool {
    type Context = unsafe extern "C" fn() -> *mut c_void;
    type Choose = unsafe extern "C" fn(*mut c_void, bool, bool);
    type Set = unsafe extern "C" fn(*mut c_void, bool);
    let _ = tch::get_num_threads();
    // SAFETY: the mangled names say the types: `Context& at::globalContext()` and members of `at::Context` that take booleans.
    let functions = unsafe {
        let context: Option<Context> = symbol(c"_ZN2at13globalContextEv");
        let choose: Option<Choose> = symbol(c"_ZN2at7Context26setDeterministicAlgorithmsEbb");
        let fill: Option<Set> = symbol(c"_ZN2at7Context39setDeterministicFillUninitializedMemoryEb");
        context.zip(choose).zip(fill)
    };
    let Some(((context, choose), fill)) = functions else { return false };
    // SAFETY: the context lives as long as the process. Without "warn only" an operation that cannot repeat its bits is an error.
    unsafe {
        choose(context(), true, false);
        // Nobody here reads what nobody has written, so libtorch need not fill it with numbers that would show.
        fill(context(), false);
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_has_the_switch_and_takes_it() {
        type Ask = unsafe extern "C" fn(*mut c_void) -> bool;
        assert!(use_repeatable_kernels());
        // SAFETY: as in the function.
        let (is_on, fills) = unsafe {
            let context: unsafe extern "C" fn() -> *mut c_void = symbol(c"_ZN2at13globalContextEv").unwrap();
            let ask: Ask = symbol(c"_ZNK2at7Context23deterministicAlgorithmsEv").unwrap();
            let fills: Ask = symbol(c"_ZNK2at7Context36deterministicFillUninitializedMemoryEv").unwrap();
            (ask(context()), fills(context()))
        };
        assert!(is_on && !fills);
    }
}
