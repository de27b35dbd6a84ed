//! A run of one process: every collective is already done.

use super::{Alone, Buffer, Collectives, CommError, Exchange, FlatMemory, ReduceOp};
use crate::signals::StopRequest;

/// The only rank.
#[derive(Debug)]
pub struct Solo;

impl Collectives for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&mut self, _name: &'static str, _op: ReduceOp, _data: Buffer<'_>) -> Result<(), CommError> {
        Ok(())
    }

    fn broadcast(&mut self, _name: &'static str, _data: Buffer<'_>) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(&mut self, _name: &'static str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![mine.to_vec()])
    }

    fn barrier(&mut self, _name: &'static str) -> Result<(), CommError> {
        Ok(())
    }

    fn share_stop(&mut self, _stop: &StopRequest) {}

    unsafe fn exchange(&mut self, _memory: FlatMemory) -> Result<Box<dyn Exchange>, CommError> {
        Ok(Box::new(Alone))
    }
}
