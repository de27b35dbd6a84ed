//! The global order: one integer, the data position, names a row of an epoch; nothing else is needed to resume.
//!
//! Row groups are put in a new order each epoch, `window_groups` consecutive ones form a window, and the rows of a
//! window are mixed with one another. So a run reads few row groups at a time, and any position is found by arithmetic.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    error::{Error, Result},
    permutation::Permutation,
    random::Purpose,
};

/// Maps positions of the whole run to rows.
#[derive(Debug)]
pub struct GlobalOrder {
    /// First row of every group, and the number of rows at the end.
    starts: Vec<u64>,
    shuffle: Option<Shuffle>,
}

#[derive(Debug)]
struct Shuffle {
    seed: u64,
    window_groups: usize,
    /// The last epochs asked for: two, since threads work on both sides of an epoch's end.
    epochs: Mutex<Vec<Arc<EpochOrder>>>,
}

/// The groups of one epoch in their order.
#[derive(Debug)]
struct EpochOrder {
    epoch: u64,
    groups: Vec<u32>,
    /// Rows before the group at each place of the order, and the number of rows at the end.
    starts: Vec<u64>,
}

impl GlobalOrder {
    /// A new order of the rows each epoch.
    ///
    /// # Errors
    /// [`Error::Setting`] when there are no rows or no groups in a window.
    pub fn new(groups: &[u64], seed: u64, window_groups: usize) -> Result<Self> {
        if window_groups == 0 {
            return Err(Error::Setting("data.window_groups = 0 mixes no row groups; use at least 1".into()));
        }
        if u32::try_from(groups.len()).is_err() {
            return Err(Error::Setting("the data set has more than 2^32 row groups; use larger ones".into()));
        }
        let shuffle = Shuffle { seed, window_groups, epochs: Mutex::new(Vec::new()) };
        Ok(Self { starts: prefix_sums(groups.iter().copied())?, shuffle: Some(shuffle) })
    }

    /// The rows as they lie, every epoch.
    ///
    /// # Errors
    /// [`Error::Setting`] when there are no rows.
    pub fn sequential(groups: &[u64]) -> Result<Self> {
        Ok(Self { starts: prefix_sums(groups.iter().copied())?, shuffle: None })
    }

    /// Rows of an epoch.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Never true: an order has rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The epoch and the row at a position of the run.
    pub fn row(&self, position: u64) -> (u64, u64) {
        let (epoch, place) = (position / self.len(), position % self.len());
        let row = match &self.shuffle {
            None => place,
            Some(shuffle) => shuffle.epoch_order(epoch, &self.starts).row(place, shuffle, &self.starts),
        };
        (epoch, row)
    }
}

impl Shuffle {
    fn epoch_order(&self, epoch: u64, starts: &[u64]) -> Arc<EpochOrder> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(order) = epochs.iter().find(|order| order.epoch == epoch) {
            return order.clone();
        }
        let order = Arc::new(EpochOrder::new(epoch, self.seed, starts));
        if epochs.len() == 2 {
            epochs.remove(0);
        }
        epochs.push(order.clone());
        order
    }
}

impl EpochOrder {
    fn new(epoch: u64, seed: u64, group_starts: &[u64]) -> Self {
        let count = group_starts.len() - 1;
        let permutation = Permutation::new(count as u64, seed, Purpose::GroupOrder, epoch, 0);
        let groups: Vec<u32> = (0..count as u64).map(|place| permutation.apply(place) as u32).collect();
        let mut starts = Vec::with_capacity(count + 1);
        let mut rows = 0;
        starts.push(0);
        for &group in &groups {
            rows += group_starts[group as usize + 1] - group_starts[group as usize];
            starts.push(rows);
        }
        Self { epoch, groups, starts }
    }

    fn row(&self, place: u64, shuffle: &Shuffle, group_starts: &[u64]) -> u64 {
        let window = self.group_at(place) / shuffle.window_groups;
        let first = window * shuffle.window_groups;
        let end = first.saturating_add(shuffle.window_groups).min(self.groups.len());
        let (from, to) = (self.starts[first], self.starts[end]);
        let mixed =
            Permutation::new(to - from, shuffle.seed, Purpose::WindowOrder, self.epoch, window as u64);
        let place = from + mixed.apply(place - from);
        let at = self.group_at(place);
        group_starts[self.groups[at] as usize] + (place - self.starts[at])
    }

    /// Which place of the group order holds a row (empty groups hold none).
    fn group_at(&self, place: u64) -> usize {
        self.starts.partition_point(|&start| start <= place) - 1
    }
}

fn prefix_sums(counts: impl Iterator<Item = u64>) -> Result<Vec<u64>> {
    let mut sums = vec![0u64];
    let mut total = 0u64;
    for count in counts {
        total = total
            .checked_add(count)
            .ok_or_else(|| Error::Setting("the data set has more than 2^64 rows".into()))?;
        sums.push(total);
    }
    if total == 0 {
        return Err(Error::Setting("the data set has no rows; a split needs at least one".into()));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch_rows(order: &GlobalOrder, epoch: u64) -> Vec<u64> {
        (0..order.len())
            .map(|place| {
                let (found, row) = order.row(epoch * order.len() + place);
                assert_eq!(found, epoch);
                row
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_epoch_visits_every_row_once(
            groups in prop::collection::vec(0u64..40, 1..30), seed: u64, window in 1usize..40, epoch in 0u64..1000,
        ) {
            prop_assume!(groups.iter().sum::<u64>() > 0);
            let order = GlobalOrder::new(&groups, seed, window).unwrap();
            let mut rows = epoch_rows(&order, epoch);
            rows.sort_unstable();
            prop_assert!(rows.iter().copied().eq(0..order.len()));
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_lookups_do_not_depend_on_history() {
        let groups = [100, 37, 200, 5];
        let order = GlobalOrder::new(&groups, 1, 2).unwrap();
        let epochs: Vec<_> = (0..4).map(|epoch| epoch_rows(&order, epoch)).collect();
        for (i, epoch) in epochs.iter().enumerate() {
            assert_eq!(epochs.iter().filter(|other| *other == epoch).count(), 1, "epoch {i} repeats");
        }
        assert_ne!(epochs[0], epoch_rows(&GlobalOrder::new(&groups, 2, 2).unwrap(), 0));
        let fresh = GlobalOrder::new(&groups, 1, 2).unwrap();
        for position in (0..4 * order.len()).rev() {
            let (epoch, place) = (position / order.len(), position % order.len());
            assert_eq!(fresh.row(position).1, epochs[epoch as usize][place as usize]);
        }
    }

    #[test]
    fn a_window_reads_only_its_groups() {
        let groups = [50u64; 40];
        let order = GlobalOrder::new(&groups, 9, 4).unwrap();
        let rows = epoch_rows(&order, 0);
        for window in rows.chunks(200) {
            let mut read: Vec<u64> = window.iter().map(|row| row / 50).collect();
            read.sort_unstable();
            read.dedup();
            assert_eq!(read.len(), 4);
            assert!(window.windows(2).filter(|pair| pair[1] == pair[0] + 1).count() < 10);
        }
    }

    #[test]
    fn the_first_position_is_uniform_over_epochs() {
        let order = GlobalOrder::new(&[4, 4, 4, 4, 4], 3, 2).unwrap();
        let mut counts = [0f64; 20];
        for epoch in 0..20_000 {
            counts[order.row(epoch * 20).1 as usize] += 1.0;
        }
        let chi_square: f64 = counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 43.8, "19 degrees of freedom, p = 0.001: {chi_square}");
    }

    /// Runs are resumed by later versions: the order must never change.
    #[test]
    fn values_are_pinned() {
        let order = GlobalOrder::new(&[5, 5, 5, 5], 1, 2).unwrap();
        assert_eq!(
            epoch_rows(&order, 3),
            [10, 11, 14, 13, 15, 12, 19, 16, 17, 18, 0, 7, 2, 4, 5, 6, 8, 1, 3, 9]
        );
    }

    #[test]
    fn sequential_is_the_identity() {
        let order = GlobalOrder::sequential(&[3, 4]).unwrap();
        assert_eq!(epoch_rows(&order, 5), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn refuses_what_has_no_order() {
        for groups in [&[][..], &[0, 0]] {
            assert!(GlobalOrder::new(groups, 1, 1).unwrap_err().is_config());
            assert!(GlobalOrder::sequential(groups).unwrap_err().is_config());
        }
        assert!(GlobalOrder::new(&[1], 1, 0).unwrap_err().is_config());
        assert!(GlobalOrder::new(&[u64::MAX, 2], 1, 1).unwrap_err().is_config());
    }
}
