//! Which samples of a global batch a rank computes, so that every world size sees the same global batches.

use std::ops::Range;

use crate::{
    cut::MicroBatchLimit,
    drop::SampleKey,
    error::{Error, Result},
    order::GlobalOrder,
};

/// The part of every global batch that one rank takes: lane l belongs to rank `l % world_size`.
///
/// Any number of ranks up to that of the lanes works. Loads are even when the ranks divide the lanes and the lanes divide
/// the global batch; otherwise some ranks have a few samples more than others, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    rank: u64,
    world_size: u64,
    limit: MicroBatchLimit,
}

impl BatchPlan {
    /// The part of `rank`, computed in micro-batches within `limit`.
    ///
    /// # Errors
    /// [`Error::Plan`] when a limit is zero, `rank` is not below `world_size` or there are more ranks than lanes.
    pub fn new(limit: MicroBatchLimit, rank: usize, world_size: usize, lanes: usize) -> Result<Self> {
        let refuse = |reason: String| Err(Error::Plan(reason));
        if limit.rows == 0 || limit.visible_tokens == Some(0) {
            return refuse("per_device_batch_size and its limit of tokens must be at least 1".into());
        }
        if rank >= world_size {
            return refuse(format!("rank {rank} does not exist in a world of {world_size} ranks"));
        }
        if world_size > lanes {
            return refuse(format!(
                "{world_size} ranks are more than data.canonical_lanes = {lanes}, so some would have no data; use at most \
                 {lanes} ranks, or start a new run with more lanes"
            ));
        }
        Ok(Self { rank: rank as u64, world_size: world_size as u64, limit })
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The limit of a micro-batch.
    pub fn limit(&self) -> MicroBatchLimit {
        self.limit
    }

    /// This rank's samples of a stretch of positions, ascending.
    pub fn keys<'a>(
        &'a self,
        order: &'a GlobalOrder,
        positions: Range<u64>,
    ) -> impl Iterator<Item = SampleKey> + 'a {
        let own = positions.filter(|&position| order.lane(position) % self.world_size == self.rank);
        own.map(|position| order.key(position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_numbers() {
        let limit = MicroBatchLimit { rows: 8, visible_tokens: None };
        let message = |limit, rank, world| BatchPlan::new(limit, rank, world, 64).unwrap_err().to_string();
        assert!(message(limit, 0, 65).contains("65 ranks are more than data.canonical_lanes = 64"));
        assert!(message(limit, 4, 4).contains("rank 4 does not exist in a world of 4 ranks"));
        assert!(message(limit, 0, 0).contains("rank 0"));
        assert!(message(MicroBatchLimit { rows: 0, ..limit }, 0, 1).contains("per_device_batch_size"));
        assert!(message(MicroBatchLimit { visible_tokens: Some(0), ..limit }, 0, 1).contains("tokens"));
        assert!(BatchPlan::new(limit, 64, 64, 64).unwrap_err().is_config());
        for world in 1..=64 {
            assert!(BatchPlan::new(limit, world - 1, world, 64).is_ok());
        }
    }
}
