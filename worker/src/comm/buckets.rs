//! How the flat buffers are cut: buckets from the end downwards, as backward finishes them, and every rank's part of each.

use std::ops::Range;

/// Parts begin at multiples of this many elements: 64 bytes of `f32`.
const ALIGNMENT: usize = 16;
/// Elements of the first bucket, 1 MiB: the exchange is to begin early.
const FIRST: usize = 1 << 18;

/// The cut of `0..capacity`, a pure function of what [`new`](Self::new) takes and so the same on all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketPlan {
    /// In the order of the exchange: from the end of the buffer downwards.
    buckets: Vec<Range<usize>>,
    /// What is left at the beginning of every region because it cannot be cut into equal aligned parts; ascending.
    shared: Vec<Range<usize>>,
    world_size: usize,
}

impl BucketPlan {
    /// Buckets of about `bucket_elements` each, the first one smaller, none of which is in two of the regions that begin at 0 and
    /// at the ascending `cuts`. `capacity` and cuts are rounded down to 16 elements.
    pub fn new(capacity: usize, cuts: &[usize], bucket_elements: usize, world_size: usize) -> Self {
        let world_size = world_size.max(1);
        let grain = ALIGNMENT * world_size;
        let rounded = |elements: usize| elements.max(1).div_ceil(grain).saturating_mul(grain);
        let mut size = rounded(bucket_elements.min(FIRST));
        let (mut buckets, mut shared) = (Vec::new(), Vec::new());
        let mut end = capacity / ALIGNMENT * ALIGNMENT;
        for &cut in cuts.iter().rev().chain(&[0]) {
            let first = end.min(cut / ALIGNMENT * ALIGNMENT);
            while end - first >= grain {
                let start = if end - first > size { end - size } else { first + (end - first) % grain };
                buckets.push(start..end);
                end = start;
                size = rounded(bucket_elements);
            }
            shared.insert(0, first..end);
            end = first;
        }
        Self { buckets, shared, world_size }
    }

    /// The buckets in the order in which they are exchanged. Their lengths are multiples of 16 x world_size.
    pub fn buckets(&self) -> &[Range<usize>] {
        &self.buckets
    }

    /// The first elements of every region, fewer than 16 x world_size and mostly none: no equal parts can be cut from them, so
    /// every rank has the whole.
    pub fn shared(&self) -> &[Range<usize>] {
        &self.shared
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
            blocks in 0_usize..20_000, mut cuts in proptest::collection::vec(0_usize..400_000, 0..3),
            bucket in 0_usize..200_000, world_size in 1_usize..70
        ) {
            cuts.sort_unstable();
            let plan = BucketPlan::new(blocks * ALIGNMENT, &cuts, bucket, world_size);
            prop_assert_eq!(plan.shared().len(), cuts.len() + 1);
            prop_assert!(plan.shared().iter().all(|shared| shared.len() < ALIGNMENT * world_size));
            for bucket in plan.buckets() {
                prop_assert!(!bucket.is_empty() && bucket.len() % (ALIGNMENT * world_size) == 0);
                let cuts = cuts.iter().map(|cut| cut / ALIGNMENT * ALIGNMENT);
                prop_assert!(cuts.clone().all(|cut| cut <= bucket.start || bucket.end <= cut));
            }
            prop_assert!(plan.buckets().windows(2).all(|pair| pair[1].end <= pair[0].start));

            let parts = (0..world_size).flat_map(|rank| plan.parts(rank)).chain(plan.shared().iter().cloned());
            let mut parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
            parts.sort_by_key(|part| part.start);
            let mut end = 0;
            for part in parts {
                prop_assert_eq!(part.start, end);
                prop_assert_eq!(part.start % ALIGNMENT, 0);
                end = part.end;
            }
            prop_assert_eq!(end, blocks * ALIGNMENT);
        }

        #[test]
        fn ranks_have_equal_shares_in_ascending_order(
            blocks in 0_usize..20_000, cut in 0_usize..20_000, world_size in 1_usize..70
        ) {
            let plan = BucketPlan::new(blocks * ALIGNMENT, &[cut * ALIGNMENT], 30_000, world_size);
            let share = |rank| plan.parts(rank).map(|part| part.len()).sum::<usize>();
            prop_assert!((0..world_size).all(|rank| share(rank) == share(0)));
            let parts: Vec<_> = plan.parts(world_size - 1).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }

        #[test]
        fn buckets_have_the_wanted_size(bucket in 1_usize..1_000_000) {
            let plan = BucketPlan::new(1 << 22, &[], bucket, 4);
            let sizes: Vec<_> = plan.buckets().iter().map(ExactSizeIterator::len).collect();
            prop_assert!(sizes[0] < bucket.min(FIRST) + 64);
            prop_assert!(sizes[1..].iter().all(|&size| size < bucket + 64));
            prop_assert!(sizes.len() <= 2 + (1 << 22) / bucket.max(64));
        }
    }

    #[test]
    fn a_power_of_two_of_ranks_leaves_nothing_over() {
        let plan = |world_size| BucketPlan::new(3 << 14, &[1 << 14], 5000, world_size);
        for world_size in [1, 2, 4, 64, 1024] {
            assert_eq!(plan(world_size).shared(), [0..0, 1 << 14..1 << 14]);
        }
        assert_eq!(plan(5).shared(), [0..(1 << 14) % 80, 1 << 14..(1 << 14) + (2 << 14) % 80]);
    }
}
