//! Who updates, counts and writes which elements of the arena.

use std::ops::Range;

use crate::comm::BucketPlan;
use crate::optim::Parts;

/// One rank's elements of the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    /// What it updates, and so keeps moments and averages of.
    pub updated: Parts,
    /// What it alone counts in norms and writes to checkpoints; a part of `updated`. All ranks together have every element once.
    pub own: Parts,
}

impl Division {
    /// Every rank updates the whole; what is counted and written is shared out in equal parts.
    pub fn replicated(arena_len: usize, rank: usize, world_size: usize) -> Self {
        /// Parts begin at multiples of this many elements.
        const ALIGNMENT: usize = 16;
        let blocks = arena_len.div_ceil(ALIGNMENT);
        let cut = |rank: usize| blocks * rank / world_size * ALIGNMENT;
        let own = cut(rank)..cut(rank + 1);
        Self { updated: Parts::whole(arena_len), own: Parts::new(arena_len, [own]) }
    }

    /// A rank updates its part of every bucket, and with all others what no equal parts could be cut from.
    pub fn sharded(arena_len: usize, plan: &BucketPlan, rank: usize) -> Self {
        let parts = |shared: &[Range<usize>]| {
            let mut parts: Vec<_> = shared.iter().cloned().chain(plan.parts(rank)).collect();
            parts.sort_by_key(|part| part.start);
            Parts::new(arena_len, parts)
        };
        Self { updated: parts(plan.shared()), own: parts(if rank == 0 { plan.shared() } else { &[] }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers_once(divisions: &[Division], len: usize) {
        let mut own: Vec<_> = divisions.iter().flat_map(|division| division.own.iter()).collect();
        own.sort_by_key(|part| part.arena.start);
        let end = own.iter().fold(0, |end, part| {
            assert_eq!(part.arena.start, end);
            part.arena.end
        });
        assert_eq!(end, len);
        for division in divisions {
            let updated = division.own.iter().flat_map(|part| division.updated.within(part.arena));
            assert_eq!(updated.map(|part| part.arena.len()).sum::<usize>(), division.own.len());
        }
    }

    #[test]
    fn every_element_is_counted_once_and_updated_by_who_counts_it() {
        for len in [0_usize, 1, 15, 16, 17, 1000, 4096, 16_384, 16_385] {
            let capacity = len.next_multiple_of(1 << 14);
            for (world_size, cut) in (1..9).flat_map(|world_size| [(world_size, 0), (world_size, 4000)]) {
                let plan = BucketPlan::new(capacity, &[cut], 3000, world_size);
                let ranks = 0..world_size;
                covers_once(
                    &ranks
                        .clone()
                        .map(|rank| Division::replicated(len, rank, world_size))
                        .collect::<Vec<_>>(),
                    len,
                );
                covers_once(&ranks.map(|rank| Division::sharded(len, &plan, rank)).collect::<Vec<_>>(), len);
            }
        }
    }

    #[test]
    fn a_sharded_rank_keeps_its_share_only() {
        let len = 100 << 14;
        for world_size in [2, 3, 4] {
            let plan = BucketPlan::new(len, &[], 1 << 16, world_size);
            for rank in 0..world_size {
                let kept = Division::sharded(len, &plan, rank).updated.len();
                assert!(kept <= len / world_size + 16 * world_size, "{kept} of {len} on {world_size} ranks");
            }
        }
        assert_eq!(
            Division::sharded(len, &BucketPlan::new(len, &[], 1 << 16, 1), 0).updated,
            Parts::whole(len)
        );
    }
}
