//! The order is a bijection, uniform, local to its lanes, and the same for ever.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::dataset::{Example, Part};

/// Sources of so many groups of so many rows; rows are never read.
struct Sources {
    groups: Vec<u64>,
    parts: Vec<Part>,
}

impl Sources {
    fn new(sources: &[(&[u64], f64)]) -> Self {
        let (mut groups, mut parts) = (Vec::new(), Vec::new());
        for (index, (of_source, weight)) in sources.iter().enumerate() {
            let first = groups.len();
            groups.extend_from_slice(of_source);
            parts.push(Part { name: format!("s{index}"), groups: first..groups.len(), weight: *weight });
        }
        Self { groups, parts }
    }
}

impl Dataset for Sources {
    fn len(&self) -> u64 {
        self.groups.iter().sum()
    }
    fn groups(&self) -> &[u64] {
        &self.groups
    }
    fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }
    fn example(&self, _: u64) -> Result<Option<Example>> {
        Ok(None)
    }
    fn fingerprint(&self) -> &str {
        "sources"
    }
}

const SETTINGS: OrderSettings = OrderSettings { seed: 1, shuffle: true, window_groups: 2, lanes: 4 };

fn order(groups: &[u64], settings: OrderSettings) -> GlobalOrder {
    GlobalOrder::new(&Sources::new(&[(groups, 1.0)]), settings).unwrap()
}

fn epoch_rows(order: &GlobalOrder, epoch: u64) -> Vec<u64> {
    let positions = epoch * order.len()..(epoch + 1) * order.len();
    order.keys(positions).inspect(|key| assert_eq!(key.epoch, epoch)).map(|key| key.row).collect()
}

proptest! {
    #[test]
    fn every_epoch_visits_every_row_once(
        groups in prop::collection::vec(0u64..40, 1..30), seed: u64, shuffle: bool, window_groups in 1usize..40,
        lanes in 1usize..100, epoch in 0u64..1000,
    ) {
        prop_assume!(groups.iter().sum::<u64>() > 0);
        let order = order(&groups, OrderSettings { seed, shuffle, window_groups, lanes });
        let mut rows = epoch_rows(&order, epoch);
        rows.sort_unstable();
        prop_assert!(rows.iter().copied().eq(0..order.len()));
    }

    #[test]
    fn every_source_of_a_mixture_has_its_own_epochs(
        first in prop::collection::vec(1u64..20, 1..6), second in prop::collection::vec(1u64..20, 1..6),
        weight in 0.1f64..10.0, seed: u64, lanes in 1usize..20,
    ) {
        let sources = Sources::new(&[(&first, weight), (&second, 1.0)]);
        let order = GlobalOrder::new(&sources, OrderSettings { seed, lanes, ..SETTINGS }).unwrap();
        let border: u64 = first.iter().sum();
        let mut seen = [Vec::new(), Vec::new()];
        for key in order.keys(0..3000) {
            seen[usize::from(key.row >= border)].push((key.epoch, key.row));
        }
        for (mut seen, rows) in seen.into_iter().zip([0..border, border..order.len()]) {
            let whole = seen.len() as u64 / (rows.end - rows.start);
            prop_assert!(seen.iter().is_sorted_by_key(|(epoch, _)| *epoch));
            seen.sort_unstable();
            let wanted = (0..whole).flat_map(|epoch| rows.clone().map(move |row| (epoch, row)));
            prop_assert!(seen.iter().copied().take_while(|(epoch, _)| *epoch < whole).eq(wanted));
        }
    }
}

#[test]
fn epochs_seeds_and_sources_differ_and_lookups_do_not_depend_on_history() {
    let groups = [100, 37, 200, 5];
    let one = order(&groups, SETTINGS);
    let epochs: Vec<_> = (0..6).map(|epoch| epoch_rows(&one, epoch)).collect();
    assert_eq!(epochs.iter().collect::<BTreeSet<_>>().len(), 6);
    assert_ne!(epochs[0], epoch_rows(&order(&groups, OrderSettings { seed: 2, ..SETTINGS }), 0));
    let fresh = order(&groups, SETTINGS);
    for position in (0..6 * one.len()).rev() {
        let (epoch, place) = (position / one.len(), position % one.len());
        assert_eq!(fresh.key(position).row, epochs[epoch as usize][place as usize]);
    }
    let twins = Sources::new(&[(&groups, 1.0), (&groups, 1.0)]);
    let twins = GlobalOrder::new(&twins, SETTINGS).unwrap();
    let rows: Vec<u64> = twins.keys(0..2 * one.len()).map(|key| key.row).collect();
    let (a, b): (Vec<u64>, Vec<u64>) = rows.into_iter().partition(|&row| row < one.len());
    assert_ne!(a, b.iter().map(|row| row - one.len()).collect::<Vec<_>>());
}

#[test]
fn a_lane_reads_its_windows_one_after_another_and_no_others() {
    // 160 groups of 50 rows: each of the four lanes is 20 windows of two groups.
    let order = order(&[50; 160], SETTINGS);
    let mut of_lanes = Vec::new();
    for lane in 0..4 {
        let positions = (0..order.len()).filter(|&position| order.lane(position) == lane);
        let rows: Vec<u64> = positions.map(|position| order.key(position).row).collect();
        for window in rows.chunks(100) {
            assert_eq!(window.iter().map(|row| row / 50).collect::<BTreeSet<_>>().len(), 2);
            assert!(window.windows(2).filter(|pair| pair[1] == pair[0] + 1).count() < 10);
        }
        of_lanes.push(rows.into_iter().map(|row| row / 50).collect::<BTreeSet<_>>());
    }
    assert_eq!(of_lanes.iter().map(BTreeSet::len).sum::<usize>(), 160, "no group is read by two lanes");
    // Where lanes end within a window, only that window is read twice.
    let uneven = self::order(&[50; 161], SETTINGS);
    let read = (0..4).map(|lane| {
        let positions = (0..uneven.len()).filter(|&position| uneven.lane(position) == lane);
        positions.map(|position| uneven.key(position).row / 50).collect::<BTreeSet<_>>().len()
    });
    assert!((161..=161 + 3 * 2).contains(&read.sum::<usize>()));
}

#[test]
fn consecutive_positions_come_from_consecutive_lanes() {
    let order = order(&[10; 5], SETTINGS);
    for position in 0..200 {
        assert_eq!(order.lane(position), position % 50 % 4);
    }
}

/// Sum of (found - expected)^2 / expected, and a bound: mean d, deviation sqrt(2d), five deviations above the mean.
fn chi_square(found: &[f64], shares: &[f64]) -> (f64, f64) {
    let (samples, sum) = (found.iter().sum::<f64>(), shares.iter().sum::<f64>());
    let (mut statistic, mut degrees) = (0.0, -1.0f64);
    for (&found, &share) in found.iter().zip(shares) {
        let expected = share / sum * samples;
        if expected == 0.0 {
            assert_eq!(found, 0.0);
        } else {
            statistic += (found - expected).powi(2) / expected;
            degrees += 1.0;
        }
    }
    (statistic, degrees + 5.0 * (2.0 * degrees).sqrt())
}

#[test]
fn every_row_is_equally_likely_at_a_position_over_seeds_and_over_epochs() {
    let groups = [4; 8];
    for position in [0, 1, 2, 13, 31] {
        let (mut over_seeds, mut over_epochs) = ([0f64; 32], [0f64; 32]);
        let fixed = order(&groups, SETTINGS);
        for draw in 0..16_000 {
            let order = order(&groups, OrderSettings { seed: draw, ..SETTINGS });
            over_seeds[order.key(position).row as usize] += 1.0;
            over_epochs[fixed.key(draw * 32 + position).row as usize] += 1.0;
        }
        for found in [over_seeds, over_epochs] {
            let (statistic, bound) = chi_square(&found, &[1.0; 32]);
            assert!(statistic < bound, "position {position}: {statistic} of {bound}");
        }
    }
}

#[test]
fn distances_of_neighbours_are_as_likely_as_for_random_groups_and_rows() {
    // Two lanes of two windows of two groups of eight rows. Positions 0 and 1 lie in different windows, so in different
    // groups; 0 and 2 in the same window, so with probability 7/15 in the same group.
    let settings = OrderSettings { lanes: 2, ..SETTINGS };
    for (other, same_group) in [(1u64, 0.0), (2, 7.0 / 15.0)] {
        let mut found = [0f64; 64];
        for seed in 0..64_000 {
            let order = order(&[8; 8], OrderSettings { seed, ..settings });
            let (a, b) = (order.key(0).row, order.key(other).row);
            found[((b + 64 - a) % 64) as usize] += 1.0;
        }
        let mut shares = [0f64; 64];
        for (a, b) in (0..64usize).flat_map(|a| (0..64).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            // Ordered pairs of rows: 8 x 56 within groups, 64 x 56 across.
            let share = if a / 8 == b / 8 { same_group / 448.0 } else { (1.0 - same_group) / 3584.0 };
            shares[(b + 64 - a) % 64] += share;
        }
        let (statistic, bound) = chi_square(&found, &shares);
        assert!(statistic < bound, "positions 0 and {other}: {statistic} of {bound}");
    }
}

/// Runs are resumed by later versions: the order must never change.
#[test]
fn values_are_pinned() {
    let order = order(&[5, 5, 5, 5], OrderSettings { lanes: 3, ..SETTINGS });
    assert_eq!(epoch_rows(&order, 3), [5, 8, 17, 11, 13, 19, 9, 12, 4, 10, 16, 1, 7, 15, 3, 6, 18, 2, 14, 0]);
    let mixed = Sources::new(&[(&[6], 0.7), (&[4], 0.3)]);
    let mixed = GlobalOrder::new(&mixed, SETTINGS).unwrap();
    assert_eq!(
        mixed.keys(20_005..20_017).map(|key| (key.epoch, key.row)).collect::<Vec<_>>(),
        [
            (1500, 7),
            (2334, 4),
            (2334, 0),
            (2334, 5),
            (1500, 8),
            (2334, 3),
            (2334, 1),
            (1500, 9),
            (2334, 2),
            (2335, 4),
            (1501, 8),
            (2335, 3)
        ]
    );
}

#[test]
fn unshuffled_rows_come_as_they_lie_in_every_epoch() {
    let order = order(&[3, 4], OrderSettings { shuffle: false, ..SETTINGS });
    assert_eq!(epoch_rows(&order, 5), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(order.lane(7 + 5), 1);
    let mixed = Sources::new(&[(&[2], 1.0), (&[3], 1.0)]);
    let mixed = GlobalOrder::new(&mixed, OrderSettings { shuffle: false, ..SETTINGS }).unwrap();
    assert_eq!(mixed.keys(0..8).map(|key| key.row).collect::<Vec<_>>(), [0, 2, 1, 3, 0, 4, 1, 2]);
}

#[test]
fn progress_is_each_source_s_own_integer() {
    let mixed = Sources::new(&[(&[10], 0.75), (&[100], 0.25)]);
    let mixed = GlobalOrder::new(&mixed, SETTINGS).unwrap();
    let progress = mixed.progress(40_020);
    assert_eq!(progress[0], SourceProgress { name: "s0".into(), samples: 30_015, epochs: 3001.5 });
    assert_eq!(progress[1], SourceProgress { name: "s1".into(), samples: 10_005, epochs: 100.05 });
    assert_eq!(order(&[4], SETTINGS).progress(6)[0].epochs, 1.5);
}

#[test]
fn refuses_what_has_no_order() {
    let refused = |sources: &[(&[u64], f64)], settings| {
        GlobalOrder::new(&Sources::new(sources), settings).unwrap_err().to_string()
    };
    for groups in [&[][..], &[0, 0], &[u64::MAX, 2]] {
        assert!(refused(&[(groups, 1.0)], SETTINGS).contains("rows"));
    }
    assert!(refused(&[(&[1], 1.0), (&[0], 1.0)], SETTINGS).contains("'s1' has no rows"));
    assert!(refused(&[(&[1], 1.0), (&[1], 0.0)], SETTINGS).contains("weight 0"));
    assert!(
        refused(&[(&[1], 1.0)], OrderSettings { window_groups: 0, ..SETTINGS }).contains("window_groups")
    );
    assert!(refused(&[(&[1], 1.0)], OrderSettings { lanes: 0, ..SETTINGS }).contains("canonical_lanes"));
}
