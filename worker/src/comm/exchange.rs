//! Exchanging the flat buffers of a training run bucket by bucket, while the calling thread goes on computing.
//!
//! One implementation per transport; [`Alone`] is that of a single rank. Buckets come from a [`BucketPlan`](super::BucketPlan).

use std::ops::Range;
use std::time::Duration;

use half::bf16;
use ilm_model::Flat;

use super::CommError;

/// What is exchanged of the flat buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeOp {
    /// Gradients of the range are summed over all ranks, everywhere.
    AllReduce,
    /// Gradients of the range are summed; each rank gets the sum of its own equal part of the range only, in place. What the
    /// rest of the range then holds is undefined.
    ReduceScatter,
    /// Each rank's own equal part of the range of the parameters goes to all ranks, in place.
    AllGather,
    /// The same of the rounded parameters, which are half as long.
    AllGatherRounded,
}

impl ExchangeOp {
    /// Whether it brings parameters of other ranks.
    pub(super) fn gathers(self) -> bool {
        matches!(self, Self::AllGather | Self::AllGatherRounded)
    }
}

/// The flat buffers that are exchanged, by address (host or device memory).
#[derive(Debug, Clone, Copy)]
pub struct FlatMemory {
    /// First parameter.
    pub params: *mut f32,
    /// First gradient.
    pub grads: *mut f32,
    /// First parameter rounded, if products take them so.
    pub rounded: Option<*mut bf16>,
    /// Elements of each that may be accessed.
    pub capacity: usize,
}

/// What an operation is about, in words of 32 bits: two rounded parameters travel as one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub(super) first: *mut f32,
    pub(super) len: usize,
}

impl FlatMemory {
    /// The memory of a model's parameters and gradients.
    pub fn of(params: &Flat<f32>, grads: &Flat<f32>, rounded: Option<&Flat<bf16>>) -> Self {
        let least = params.capacity().min(grads.capacity());
        let capacity = rounded.map_or(least, |rounded| rounded.capacity().min(least));
        Self {
            params: params.address(),
            grads: grads.address(),
            rounded: rounded.map(Flat::address),
            capacity,
        }
    }

    /// Where a range lies in the buffer that an operation is about.
    ///
    /// # Errors
    /// There is no such range, or it cannot be cut into equal parts for the operation.
    pub(super) fn words(
        &self,
        name: &'static str,
        op: ExchangeOp,
        range: &Range<usize>,
        world_size: usize,
    ) -> Result<Words, CommError> {
        let refused = || CommError::Range { name, range: range.clone(), capacity: self.capacity };
        let divides = op == ExchangeOp::AllReduce || range.len().is_multiple_of(world_size);
        if range.start > range.end || range.end > self.capacity || !divides {
            return Err(refused());
        }
        let words = |first: *mut f32| Words { first: first.wrapping_add(range.start), len: range.len() };
        Ok(match op {
            ExchangeOp::AllReduce | ExchangeOp::ReduceScatter => words(self.grads),
            ExchangeOp::AllGather => words(self.params),
            ExchangeOp::AllGatherRounded => {
                let pairs = range.start.is_multiple_of(2) && range.len().is_multiple_of(2 * world_size);
                let rounded = self.rounded.filter(|_| pairs).ok_or_else(refused)?;
                Words { first: rounded.wrapping_add(range.start).cast(), len: range.len() / 2 }
            }
        })
    }
}

/// Exchanges parts of the flat buffers between ranks while the calling thread goes on computing.
///
/// Whoever opens one promises that the buffers outlive it, and that between `begin` and the end of the next `finish` (or
/// `wait_for`, if that is about the operation) nobody touches the range in the buffer that the operation is about.
pub trait Exchange {
    /// Begins an operation on `range`: a bucket, whose length is a multiple of 16 x world_size (of 16 for
    /// [`ExchangeOp::AllReduce`]). Ranges of operations on one buffer that are not finished do not overlap. All ranks begin the same
    /// operations in the same order. What was computed before this call is seen by it.
    ///
    /// # Errors
    /// If an earlier operation has failed, or this one cannot begin. A failure may also show in [`finish`](Self::finish) only.
    fn begin(&mut self, name: &'static str, op: ExchangeOp, range: Range<usize>) -> Result<(), CommError>;

    /// Waits until everything that was begun is complete; how long this thread stood still for it.
    ///
    /// # Errors
    /// The first failure of anything that was begun, or ranks that began different operations.
    fn finish(&mut self) -> Result<Duration, CommError>;

    /// Waits until every gathering that touches `range` is complete, for what this thread computes from then on; how long it stood
    /// still for it. Other operations go on.
    ///
    /// # Errors
    /// As [`finish`](Self::finish); a failure may also show there only.
    fn wait_for(&mut self, range: Range<usize>) -> Result<Duration, CommError>;

    /// What buckets travel by, for the reader of a log.
    fn describe(&self) -> String;
}

/// The exchange of a single rank: every operation is already done.
#[derive(Debug)]
pub struct Alone;

impl Exchange for Alone {
    fn begin(&mut self, _name: &'static str, _op: ExchangeOp, _range: Range<usize>) -> Result<(), CommError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<Duration, CommError> {
        Ok(Duration::ZERO)
    }

    fn wait_for(&mut self, _range: Range<usize>) -> Result<Duration, CommError> {
        Ok(Duration::ZERO)
    }

    fn describe(&self) -> String {
        "none, one rank".to_owned()
    }
}
