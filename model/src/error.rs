//! Every way a call into this crate can fail, each as one sentence that says what, where and what to do.

use tch::TchError;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong; nothing in this crate panics on bad input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of section `model`, `loss` or `predictor` is out of range.
    #[error("{0}")]
    Config(String),
    /// A batch breaks the layout that [`crate::Batch`] describes.
    #[error("the batch is malformed at {place}: {problem}")]
    Batch {
        /// Row, token or target entry.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// A prompt cannot be continued.
    #[error("the prompt of example {id} is malformed: {problem}")]
    Prompt {
        /// The example's id.
        id: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A parameter was asked for by a name the model does not have.
    #[error("the model has no parameter '{0}'; its names are those of its parameter layout")]
    UnknownParameter(String),
    /// Values for a parameter have the wrong count.
    #[error("parameter '{name}' has {expected} values but {found} were given")]
    ParameterSize {
        /// The parameter.
        name: String,
        /// Its number of elements.
        expected: usize,
        /// What the caller gave.
        found: usize,
    },
    /// Host arrays that belong together differ in size.
    #[error("{what} do not fit: {problem}")]
    Sizes {
        /// The arrays, in the plural.
        what: &'static str,
        /// What was expected and what was given.
        problem: String,
    },
    /// libtorch refused an operation (out of memory, mostly).
    #[error("libtorch failed: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// libtorch's messages carry a stack trace behind their first line.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

impl Error {
    /// Fails unless `what` (in the plural) number as many as the place they are for.
    pub(crate) fn unless_sized(what: &'static str, expected: usize, found: usize) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(Self::Sizes { what, problem: format!("{expected} are needed but {found} were given") })
    }

    /// True if a GPU or its libraries failed, so that another start, perhaps elsewhere, may do better. Lack of memory is none of it,
    /// nor is a GPU that this libtorch knows nothing of.
    pub fn is_device_failure(&self) -> bool {
        const FAILED: [&str; 3] = ["CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS"];
        const OTHERWISE: [&str; 3] = ["out of memory", "ALLOC_FAILED", "no kernel image"];
        let Self::Torch(error) = self else { return false };
        let text = error.to_string();
        let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
        has(&FAILED) && !has(&OTHERWISE)
    }

    /// True if the user's settings are to blame, false if data or the machine is.
    pub fn is_config(&self) -> bool {
        matches!(self, Self::Config(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_fails_is_told_from_one_that_is_full() {
        let fails = |text: &str| Error::from(TchError::Torch(text.to_owned())).is_device_failure();
        assert!(fails("CUDA error: an illegal memory access was encountered\nstack"));
        assert!(fails("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"));
        assert!(!fails("CUDA out of memory. Tried to allocate 2.00 GiB"));
        assert!(!fails("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"));
        assert!(!fails("shape '[3]' is invalid for input of size 1"));
        assert!(!Error::Config("CUDA error".to_owned()).is_device_failure());
    }

    #[test]
    fn what_libtorch_says_is_cut_to_one_line() {
        let failure = tch::Tensor::from_slice(&[1f32]).f_view([3]).unwrap_err();
        assert!(failure.to_string().lines().count() > 1);
        let message = Error::from(failure).to_string();
        assert_eq!(message.lines().count(), 1);
        assert!(message.starts_with("libtorch failed: ") && message.contains("shape '[3]'"), "{message}");
    }
}
