//! How the flat buffers are cut: buckets from the end downwards, as backward finishes them, and every rank's part of each.

use std::ops::Range;

/// Parts begin at multiples of this many elements: 64 bytes of `f32`.
const ALIGNMENT: usize = 16;
/// Elements of the first bucket, 1 MiB: the exchange is to begin early.
const FIRST: usize = 1 << 18;

/// The cut of `0..capacity`, a pure function of its three arguments and so the same on all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketPlan {
    /// In the order of the exchange: from the end of the buffer downwards.
    buckets: Vec<Range<usize>>,
    /// What is left at the beginning because it cannot be cut into equal aligned parts.
    shared: Range<usize>,
    world_size: usize,
}

impl BucketPlan {
    /// Buckets of about `bucket_elements` each, the first one smaller. `capacity` is rounded down to 16 elements.
    pub fn new(capacity: usize, bucket_elements: usize, world_size: usize) -> Self {
        let world_size = world_size.max(1);
        let grain = ALIGNMENT * world_size;
        let rounded = |elements: usize| elements.max(1).div_ceil(grain).saturating_mul(grain);
        let mut end = capacity / ALIGNMENT * ALIGNMENT;
        let mut size = rounded(bucket_elements.min(FIRST));
        let mut buckets = Vec::new();
        while end >= grain {
            let start = if end > size { end - size } else { end % grain };
            buckets.push(start..end);
            end = start;
            size = rounded(bucket_elements);
        }
        Self { buckets, shared: 0..end, world_size }
    }

    /// The buckets in the order in which they are exchanged. Their lengths are multiples of 16 x world_size.
    pub fn buckets(&self) -> &[Range<usize>] {
        &self.buckets
    }

    /// The first elements of the buffer, fewer than 16 x world_size and mostly none: no equal parts can be cut from them, so
    /// every rank has the whole.
    pub fn shared(&self) -> Range<usize> {
        self.shared.clone()
    }

    /// The part of a bucket that belongs to `rank`.
    pub fn part(&self, bucket: &Range<usize>, rank: usize) -> Range<usize> {
        let len = bucket.len() / self.world_size;
        let start = bucket.start + rank * len;
        start..start + len
    }

    /// All that belongs to `rank` alone, in ascending order.
    pub fn parts(&self, rank: usize) -> impl Iterator<Item = Range<usize>> {
        self.buckets.iter().rev().map(move |bucket| self.part(bucket, rank))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_element_is_in_one_bucket_and_belongs_to_one_rank(
            blocks in 0_usize..20_000, bucket in 0_usize..200_000, world_size in 1_usize..70
        ) {
            let capacity = blocks * ALIGNMENT;
            let plan = BucketPlan::new(capacity, bucket, world_size);
            let mut end = capacity;
            for bucket in plan.buckets() {
                prop_assert_eq!(bucket.end, end);
                prop_assert!(!bucket.is_empty() && bucket.len() % (ALIGNMENT * world_size) == 0);
                end = bucket.start;
            }
            prop_assert_eq!(plan.shared(), 0..end);
            prop_assert!(end < ALIGNMENT * world_size);

            let mut parts: Vec<_> = (0..world_size).flat_map(|rank| plan.parts(rank)).collect();
            parts.sort_by_key(|part| part.start);
            for part in parts {
                prop_assert_eq!(part.start, end);
                prop_assert_eq!(part.start % ALIGNMENT, 0);
                end = part.end;
            }
            prop_assert_eq!(end, capacity);
        }

        #[test]
        fn ranks_have_equal_shares_in_ascending_order(blocks in 0_usize..20_000, world_size in 1_usize..70) {
            let plan = BucketPlan::new(blocks * ALIGNMENT, 30_000, world_size);
            let share = |rank| plan.parts(rank).map(|part| part.len()).sum::<usize>();
            prop_assert!((0..world_size).all(|rank| share(rank) == share(0)));
            let parts: Vec<_> = plan.parts(world_size - 1).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }

        #[test]
        fn buckets_have_the_wanted_size(bucket in 1_usize..1_000_000) {
            let plan = BucketPlan::new(1 << 22, bucket, 4);
            let sizes: Vec<_> = plan.buckets().iter().map(ExactSizeIterator::len).collect();
            prop_assert!(sizes[0] < bucket.min(FIRST) + 64);
            prop_assert!(sizes[1..].iter().all(|&size| size < bucket + 64));
            prop_assert!(sizes.len() <= 2 + (1 << 22) / bucket.max(64));
        }
    }

    #[test]
    fn a_power_of_two_of_ranks_leaves_nothing_over() {
        for world_size in [1, 2, 4, 64, 1024] {
            assert_eq!(BucketPlan::new(3 << 14, 5000, world_size).shared(), 0..0);
        }
        assert_eq!(BucketPlan::new(3 << 14, 5000, 5).shared(), 0..(3 << 14) % 80);
    }
}
