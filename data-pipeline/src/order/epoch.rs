//! The rows of one epoch of one source in a two-level keyed order: row groups, then the rows of windows of groups.

use rand_chacha::rand_core::Rng;

use crate::{
    permutation::{Permutation, subkey},
    random::{Purpose, keyed_rng, shuffle},
};

/// The groups of one epoch in their order. 12 bytes a group.
#[derive(Debug)]
pub(super) struct EpochOrder {
    pub epoch: u64,
    /// Consecutive groups of this order whose rows are mixed with one another.
    window_groups: usize,
    window_key: u64,
    groups: Vec<u32>,
    /// Rows before the group at each place of the order, and the number of rows at the end.
    starts: Vec<u64>,
}

impl EpochOrder {
    /// `group_starts` has the first row of every group and the end of the last one.
    pub fn new(epoch: u64, seed: u64, source: u64, window_groups: usize, group_starts: &[u64]) -> Self {
        let count = group_starts.len() - 1;
        let rng = |purpose| keyed_rng(seed, purpose, epoch, source);
        let mut groups: Vec<u32> = (0..count as u32).collect();
        shuffle(&mut rng(Purpose::GroupOrder), &mut groups);
        let mut starts = Vec::with_capacity(count + 1);
        let mut rows = 0;
        starts.push(0);
        for &group in &groups {
            rows += group_starts[group as usize + 1] - group_starts[group as usize];
            starts.push(rows);
        }
        Self { epoch, window_groups, window_key: rng(Purpose::WindowOrder).next_u64(), groups, starts }
    }

    /// The row at a place of the epoch, which must be below the number of rows.
    pub fn row(&self, place: u64, group_starts: &[u64]) -> u64 {
        let window = last_start(&self.starts, place) / self.window_groups;
        let first = window * self.window_groups;
        let end = first.saturating_add(self.window_groups).min(self.groups.len());
        let (from, to) = (self.starts[first], self.starts[end]);
        let mixed = Permutation::new(to - from, subkey(self.window_key, window as u64));
        let place = from + mixed.apply(place - from);
        let at = first + last_start(&self.starts[first..=end], place);
        group_starts[self.groups[at] as usize] + (place - self.starts[at])
    }
}

/// Which of the ascending starts is the last one that is not above `place` (groups without rows hold none).
fn last_start(starts: &[u64], place: u64) -> usize {
    starts.partition_point(|&start| start <= place) - 1
}
