//! Libraries of the GPU's vendor are found when the program runs, so one program serves machines with and without them.

use std::error::Error;
use std::ffi::{CStr, OsString, c_char};

use libloading::Library;

/// A library of the GPU's vendor is missing, or a call into it failed.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No such library, or not one with the functions that are needed.
    #[error("{library} cannot be loaded: {reason}")]
    Missing {
        /// The library.
        library: &'static str,
        /// The loader's own text for every name tried.
        reason: String,
    },
    /// A call returned an error.
    #[error("{call} failed: {message}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's own text.
        message: String,
    },
}

/// A library that stays loaded to the end of the process: threads of its own may be at work.
#[derive(Debug)]
pub(super) struct Dynamic {
    library: &'static Library,
    title: &'static str,
}

impl Dynamic {
    /// Loads the file that `variable` of the environment names, or else the first of `names` that there is.
    pub(super) fn open(
        title: &'static str,
        variable: &str,
        names: &[&'static str],
    ) -> Result<Self, GpuError> {
        let chosen = std::env::var_os(variable).filter(|name| !name.is_empty());
        let names = chosen.map_or_else(|| names.iter().map(OsString::from).collect(), |name| vec![name]);
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: the initialisers of these libraries need nothing of the program that loads them.
            match unsafe { Library::new(&name) } {
                Ok(library) => return Ok(Self { library: Box::leak(Box::new(library)), title }),
                Err(error) => reasons.push(reason(&error)),
            }
        }
        Err(GpuError::Missing { library: title, reason: reasons.join("; ") })
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is the type of a C function with this name.
    pub(super) unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, GpuError> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.library.get::<F>(name) };
        found
            .map(|function| *function)
            .map_err(|error| GpuError::Missing { library: self.title, reason: reason(&error) })
    }
}

/// The loader's own text, which the error keeps as its cause.
pub(crate) fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A text that a library owns.
///
/// # Safety
/// `text` is null or points to a C string that nobody changes during the call.
pub(super) unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return "no text".to_owned();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
