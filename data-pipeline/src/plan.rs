//! Which slots of a global batch a rank computes, so that every world size sees the same global batches.

use crate::error::{Error, Result};

/// The part of every global batch that one rank takes, cut into micro-batches.
///
/// Slot j of a global batch belongs to lane `j % canonical_lanes`, and lane l to rank `l % world_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    global_batch: usize,
    per_device: usize,
    rank: usize,
    world_size: usize,
}

impl BatchPlan {
    /// Checks the arithmetic.
    ///
    /// # Errors
    /// [`Error::Plan`] when a size is zero, `rank` is not below `world_size`, `world_size` does not divide
    /// `canonical_lanes`, or `global_batch` is not a multiple of `per_device * world_size`.
    pub fn new(
        global_batch: usize,
        per_device: usize,
        rank: usize,
        world_size: usize,
        canonical_lanes: usize,
    ) -> Result<Self> {
        let refuse = |reason: String| Err(Error::Plan(reason));
        for (name, value) in [
            ("global_batch_size", global_batch),
            ("per_device_batch_size", per_device),
            ("the world size", world_size),
            ("data.canonical_lanes", canonical_lanes),
        ] {
            if value == 0 {
                return refuse(format!("{name} is 0; use at least 1"));
            }
        }
        if rank >= world_size {
            return refuse(format!("rank {rank} does not exist in a world of {world_size} ranks"));
        }
        if !canonical_lanes.is_multiple_of(world_size) {
            return refuse(format!(
                "{world_size} ranks do not divide data.canonical_lanes = {canonical_lanes}; use a divisor as the number of ranks, or set \
                 data.canonical_lanes to a multiple of it"
            ));
        }
        let fits = per_device.checked_mul(world_size).is_some_and(|step| global_batch.is_multiple_of(step));
        if !fits {
            return refuse(format!(
                "global_batch_size = {global_batch} is not a multiple of per_device_batch_size = {per_device} times {world_size} \
                 ranks; change one of them"
            ));
        }
        Ok(Self { global_batch, per_device, rank, world_size })
    }

    /// Samples of a step over all ranks.
    pub fn global_batch(&self) -> usize {
        self.global_batch
    }

    /// Micro-batches of a step on this rank.
    pub fn accumulate(&self) -> usize {
        self.global_batch / (self.per_device * self.world_size)
    }

    /// The slots of one micro-batch, ascending.
    ///
    /// `j % lanes % world_size` is `j % world_size` because the world size divides the lanes, so the rank's slots are
    /// every `world_size`-th one.
    pub fn slots(&self, micro_batch: usize) -> impl ExactSizeIterator<Item = u64> + use<> {
        let (first, rank, world_size) = (micro_batch * self.per_device, self.rank, self.world_size);
        (first..first + self.per_device).map(move |slot| (slot * world_size + rank) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_part_every_global_batch_by_lanes() {
        for (global, per_device, world, lanes) in
            [(512, 64, 4, 64), (64, 4, 1, 64), (64, 4, 16, 64), (96, 16, 6, 12)]
        {
            let mut owner = vec![None; global];
            for rank in 0..world {
                let plan = BatchPlan::new(global, per_device, rank, world, lanes).unwrap();
                let mut previous = None;
                for micro_batch in 0..plan.accumulate() {
                    assert_eq!(plan.slots(micro_batch).len(), per_device);
                    for slot in plan.slots(micro_batch) {
                        assert!(previous < Some(slot), "ascending");
                        previous = Some(slot);
                        assert_eq!(slot as usize % lanes % world, rank);
                        assert_eq!(owner[slot as usize].replace(rank), None);
                    }
                }
            }
            assert!(owner.iter().all(Option::is_some));
        }
    }

    #[test]
    fn refusals_name_the_numbers() {
        let message = |g, p, r, w, l| BatchPlan::new(g, p, r, w, l).unwrap_err().to_string();
        assert!(message(512, 60, 0, 1, 64).contains("512"));
        assert!(message(512, 64, 0, 3, 64).contains("3 ranks do not divide data.canonical_lanes = 64"));
        assert!(message(512, 64, 4, 4, 64).contains("rank 4"));
        assert!(message(0, 64, 0, 1, 64).contains("global_batch_size"));
        assert!(message(64, usize::MAX, 0, 2, 64).contains("not a multiple"));
        assert!(BatchPlan::new(64, 0, 0, 1, 64).unwrap_err().is_config());
    }
}
