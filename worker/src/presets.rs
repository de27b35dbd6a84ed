//! Settings that libraries read from the environment, made where the user has made none.

use crate::comm::MOST_PIECE_BYTES;

/// Lets Open MPI send a piece of a bucket over TCP at once, where it would first ask the receiver for each: that takes half as long
/// again on a link of 1 Gbit/s.
const OPEN_MPI: &str = "OMPI_MCA_btl_tcp_eager_limit";

/// cuBLAS repeats its bits with working memory of fixed size only, and libtorch refuses repeatable products without. This is the
/// larger of the two sizes that libtorch accepts.
const CUBLAS: [&str; 2] = ["CUBLAS_WORKSPACE_CONFIG", ":4096:8"];

/// cuDNN, which newer GPUs would be asked first for attention, makes a plan for every new shape, and buckets hardly ever have one again.
const CUDNN: [&str; 2] = ["TORCH_CUDNN_SDPA_DEPRIORITIZED", "1"];

/// Makes the settings.
///
/// # Safety
/// No other thread runs yet.
pub unsafe fn make() {
    let limit = (2 * MOST_PIECE_BYTES).to_string();
    for (name, value) in [(OPEN_MPI, limit.as_str()), CUBLAS.into(), CUDNN.into()] {
        if std::env::var_os(name).is_none() {
            // SAFETY: nobody else can be reading the environment, by the caller's promise.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
