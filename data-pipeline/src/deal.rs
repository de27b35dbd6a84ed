//! Which rank computes which rows of a step: rows are swapped until all ranks have about as many visible tokens.
//!
//! All ranks wait for the one with the most tokens, and sums of a few rows differ by much: with 8 rows of text each, the fullest of
//! 64 ranks has half as many again as the mean. A swap of a long row for a shorter one leaves every rank its number of
//! rows, which micro-batches are cut by.

use std::collections::{BTreeMap, BTreeSet};

/// So many times smaller than the mean is what a rank may have beyond it before rows are swapped.
const TOLERANCE: u64 = 64;
/// Most swaps times ranks: bounds the time that this takes, and is far more than what is needed.
const MOST_SWAPS: usize = 8;

/// The rows that ranks compute for each other in one step: a pure function of the lengths, so that all ranks deal alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// The rows that a rank gives away, ascending, by the rank; no entry for ranks that give nothing.
    given: BTreeMap<usize, Vec<usize>>,
    /// The rows that a rank takes, ascending.
    taken: BTreeMap<usize, Vec<Source>>,
}

/// A row of another rank: that rank, and the row's number among the rows of that rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    rank: usize,
    row: usize,
}

/// A row in a hand. Hands are sorted by length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Card {
    length: u64,
    source: Source,
}

impl Deal {
    /// From the visible tokens of every row of every rank.
    pub fn new(lengths: &[Vec<u32>]) -> Self {
        let hand = |(rank, lengths): (usize, &Vec<u32>)| {
            let cards = lengths.iter().zip(0..);
            let cards =
                cards.map(|(&length, row)| Card { length: length.into(), source: Source { rank, row } });
            let mut hand: Vec<Card> = cards.collect();
            hand.sort_unstable();
            hand
        };
        let mut hands: Vec<Vec<Card>> = lengths.iter().enumerate().map(hand).collect();
        even_out(&mut hands);
        Self::of_hands(&hands)
    }

    fn of_hands(hands: &[Vec<Card>]) -> Self {
        let (mut given, mut taken) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (rank, hand) in hands.iter().enumerate() {
            for Card { source, .. } in hand.iter().filter(|card| card.source.rank != rank) {
                given.entry(source.rank).or_default().push(source.row);
                taken.entry(rank).or_default().push(*source);
            }
        }
        given.values_mut().for_each(|rows| rows.sort_unstable());
        taken.values_mut().for_each(|rows| rows.sort_unstable());
        Self { given, taken }
    }

    /// Whether every rank computes its own rows.
    pub fn is_trivial(&self) -> bool {
        self.given.is_empty()
    }

    /// The rows of its own that `rank` leaves to others, ascending.
    pub fn given(&self, rank: usize) -> &[usize] {
        self.given.get(&rank).map_or(&[], Vec::as_slice)
    }

    /// The rows that `rank` computes for others: their rank, and the index among those that it [gives](Self::given).
    pub fn taken(&self, rank: usize) -> impl Iterator<Item = (usize, usize)> {
        let taken = self.taken.get(&rank).map_or(&[][..], Vec::as_slice);
        taken.iter().filter_map(|source| {
            Some((source.rank, self.given(source.rank).binary_search(&source.row).ok()?))
        })
    }

    /// The lengths of the rows that every rank computes, if `lengths` are those that the deal was made of.
    pub fn dealt(&self, lengths: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let of_rank = |rank: usize| {
            let own = lengths[rank].iter().enumerate();
            let kept = own.filter(|(row, _)| self.given(rank).binary_search(row).is_err());
            let taken = self.taken(rank).map(|(from, index)| lengths[from][self.given(from)[index]]);
            kept.map(|(_, &length)| length).chain(taken).collect()
        };
        (0..lengths.len()).map(of_rank).collect()
    }
}

/// Swaps cards of the fullest hand for shorter ones of the emptiest hand with which that helps.
fn even_out(hands: &mut [Vec<Card>]) {
    let load = |hand: &[Card]| hand.iter().map(|card| card.length).sum::<u64>();
    let mut loads: BTreeSet<(u64, usize)> =
        hands.iter().enumerate().map(|(rank, hand)| (load(hand), rank)).collect();
    let mean = loads.iter().map(|(load, _)| load).sum::<u64>() / loads.len().max(1) as u64;
    for _ in 0..MOST_SWAPS * hands.len() {
        let Some(&(most, fullest)) = loads.last() else { return };
        if most <= mean + mean / TOLERANCE {
            return;
        }
        let swap = loads.iter().find_map(|&(least, other)| {
            let (long, short) = best_swap(&hands[fullest], &hands[other], most - least)?;
            Some((least, other, long, short))
        });
        let Some((least, other, long, short)) = swap else { return };
        let (long, short) = (hands[fullest].remove(long), hands[other].remove(short));
        put(&mut hands[fullest], short);
        put(&mut hands[other], long);
        let moved = long.length - short.length;
        for (before, after, rank) in [(most, most - moved, fullest), (least, least + moved, other)] {
            loads.remove(&(before, rank));
            loads.insert((after, rank));
        }
    }
}

/// The cards of two hands, `gap` apart, whose swap brings the hands closest to each other; none if none brings them closer.
fn best_swap(full: &[Card], other: &[Card], gap: u64) -> Option<(usize, usize)> {
    let candidates = full.iter().enumerate().flat_map(|(long, card)| {
        let wanted = card.length.saturating_sub(gap / 2);
        let behind = other.partition_point(|card| card.length < wanted);
        [behind.checked_sub(1), Some(behind)].into_iter().flatten().map(move |short| (long, short))
    });
    let left = |&(long, short): &(usize, usize)| {
        let moved = full[long].length.checked_sub(other.get(short)?.length)?;
        (0 < moved && moved < gap).then(|| (2 * moved).abs_diff(gap))
    };
    let helpful = candidates.filter_map(|swap| Some((left(&swap)?, swap)));
    helpful.min().map(|(_, swap)| swap)
}

fn put(hand: &mut Vec<Card>, card: Card) {
    hand.insert(hand.partition_point(|other| *other < card), card);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dealt(lengths: &[Vec<u32>]) -> Vec<Vec<u32>> {
        Deal::new(lengths).dealt(lengths)
    }

    fn loads(lengths: &[Vec<u32>]) -> Vec<u32> {
        lengths.iter().map(|rows| rows.iter().sum()).collect()
    }

    proptest! {
        #[test]
        fn every_row_is_computed_once_and_the_fullest_rank_has_no_more_than_before(
            lengths in prop::collection::vec(prop::collection::vec(2_u32..1000, 0..20), 0..20)
        ) {
            let after = dealt(&lengths);
            let sorted = |lengths: &[Vec<u32>]| {
                let mut all = lengths.concat();
                all.sort_unstable();
                all
            };
            prop_assert_eq!(sorted(&after), sorted(&lengths));
            let rows = |lengths: &[Vec<u32>]| lengths.iter().map(Vec::len).collect::<Vec<_>>();
            prop_assert_eq!(rows(&after), rows(&lengths));
            prop_assert!(loads(&after).iter().max() <= loads(&lengths).iter().max());
        }

        #[test]
        fn ranks_with_many_rows_end_within_the_tolerance(
            lengths in prop::collection::vec(prop::collection::vec(2_u32..200, 32), 2..9)
        ) {
            let loads = loads(&dealt(&lengths));
            let mean = loads.iter().sum::<u32>() / loads.len() as u32;
            prop_assert!(loads.iter().all(|&load| load <= mean + mean / 64 + 1));
        }
    }

    #[test]
    fn rows_that_cannot_be_dealt_better_stay() {
        for lengths in [
            vec![],
            vec![vec![], vec![]],
            vec![vec![5, 9, 700]],
            vec![vec![900], vec![3], vec![400]],
            vec![vec![10, 20], vec![20, 10]],
            vec![vec![], vec![3, 4]],
        ] {
            let deal = Deal::new(&lengths);
            assert!(deal.is_trivial() && (0..lengths.len()).all(|rank| deal.taken(rank).next().is_none()));
        }
    }

    #[test]
    fn one_swap_evens_out_two_ranks() {
        let deal = Deal::new(&[vec![10, 50, 90], vec![10, 20, 40]]);
        // 150 and 70: the swap that moves 40 is that of 50 for 10.
        assert_eq!((deal.given(0), deal.given(1)), (&[1][..], &[0][..]));
        assert_eq!(deal.taken(0).collect::<Vec<_>>(), [(1, 0)]);
        assert_eq!(deal.taken(1).collect::<Vec<_>>(), [(0, 0)]);
    }
}
