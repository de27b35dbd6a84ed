//! What ranks owe each other where they share rows: they see the same, and if one cannot have its own, all end.

use data_pipeline::{Dataset, Error};

use crate::comm::{Collectives, CommError, assert_equal};
use crate::exit;

/// Fails unless all ranks see the same rows; files may have come to some hosts only.
///
/// # Errors
/// [`CommError::Unequal`] names the ranks that see others; or a failing collective.
pub(super) fn assert_same_rows(
    comm: &mut dyn Collectives,
    what: &'static str,
    dataset: &dyn Dataset,
) -> anyhow::Result<()> {
    let seen = format!("{} rows with the fingerprint {}", dataset.len(), dataset.fingerprint());
    assert_equal(comm, what, seen).map_err(|error| match error {
        // What all ranks usually see alike, rank 0 warns of for all.
        CommError::Unequal { .. } => {
            let hint = format!("{error}; RUST_LOG=warn shows what every rank says of its data");
            anyhow::Error::new(error).context(hint)
        }
        other => other.into(),
    })
}

/// A rank cannot have rows that were there when the job began.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RowsGone(#[from] Error);

/// Ends the job on all ranks because one cannot have its rows; `error` is that of this rank. The result is the exit code.
///
/// # Errors
/// [`RowsGone`] with that error.
pub(super) fn end_by_data(comm: &mut dyn Collectives, error: Option<Error>) -> anyhow::Result<i32> {
    if let Some(error) = error {
        return Err(RowsGone::from(error).into());
    }
    // The rank with the error never comes here: it ends this one.
    comm.barrier("end by an error")?;
    Ok(exit::DATA)
}
