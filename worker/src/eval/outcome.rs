//! How a measurement ends, on all ranks alike.

use data_pipeline::Error;

use crate::comm::{Collectives, CommError, ReduceOp};

/// What became of a measurement.
#[derive(Debug)]
pub enum Outcome<T> {
    /// What was measured.
    Done(T),
    /// A rank was told to stop before the end.
    Stopped,
    /// A rank could not have its rows; that rank has the error.
    Failed(Option<Error>),
}

impl<T> Outcome<T> {
    /// Makes what was measured into something else.
    pub(super) fn map<U>(self, into: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Done(measured) => Outcome::Done(into(measured)),
            Self::Stopped => Outcome::Stopped,
            Self::Failed(error) => Outcome::Failed(error),
        }
    }
}

/// The sums over all ranks, if every rank has come to its end; `mine` says whether this one has.
pub(super) fn sum_up<const N: usize>(
    comm: &mut dyn Collectives,
    name: &'static str,
    sums: [f64; N],
    mine: Outcome<()>,
) -> Result<Outcome<[f64; N]>, CommError> {
    let ends = [matches!(mine, Outcome::Stopped), matches!(mine, Outcome::Failed(_))];
    let mut all = sums.to_vec();
    all.extend(ends.map(|ends| f64::from(u8::from(ends))));
    comm.all_reduce(name, ReduceOp::Sum, all[..].as_mut().into())?;
    let mut totals = sums;
    totals.copy_from_slice(&all[..N]);
    let error = if let Outcome::Failed(error) = mine { error } else { None };
    Ok(match all[N..] {
        [_, failed] if failed > 0.0 => Outcome::Failed(error),
        [stopped, _] if stopped > 0.0 => Outcome::Stopped,
        _ => Outcome::Done(totals),
    })
}
