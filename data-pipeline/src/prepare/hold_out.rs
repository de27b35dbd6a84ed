//! A validation split for sets that come without one: some rows of the training split, drawn at random.

use std::{fmt, ops::Range};

use rand_chacha::rand_core::Rng;

use crate::{
    config::DataConfig,
    error::{Error, Result},
    open::Split,
    permutation::Permutation,
    random::{Purpose, keyed_rng},
};

/// So many rows of `data.train`, drawn at random, are the validation split and no part of the training split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldOut {
    /// Rows that are drawn, whatever the rule for long texts makes of them.
    pub rows: u64,
    /// What they are drawn by. Of as many rows in `data.train` it draws the same ones, and fewer are among more.
    pub seed: u64,
}

impl fmt::Display for HoldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows by seed {}", self.rows, self.seed)
    }
}

impl HoldOut {
    /// Refuses what can be refused without opening a file.
    pub(super) fn check(self, config: &DataConfig) -> Result<()> {
        let refuse = |reason: &str| Err(Error::Setting(reason.into()));
        if self.rows == 0 {
            return refuse("--hold-out 0 leaves the validation split without rows; hold out at least 1");
        }
        if config.validation.is_some() {
            return refuse(
                "--hold-out makes the validation split, but data.validation is set; leave one of them out",
            );
        }
        if !config.mixture.is_empty() {
            return refuse(
                "--hold-out draws from data.train, not from data.mixture; prepare each source by itself",
            );
        }
        Ok(())
    }
}

/// Which rows of a data set a split is made of.
#[derive(Debug)]
pub(super) struct Selection {
    /// The order in which rows are held out, and how many are; none: all rows are wanted.
    held_out: Option<(Permutation, u64)>,
    /// Whether those held out are wanted, or the others.
    is_validation: bool,
    /// How many rows are wanted.
    pub len: u64,
}

impl Selection {
    /// `rows`: of the data set.
    pub fn new(hold_out: Option<HoldOut>, split: Split, rows: u64) -> Result<Self> {
        if let Some(hold_out) = hold_out.filter(|hold_out| hold_out.rows >= rows) {
            return Err(Error::Setting(format!(
                "--hold-out {} leaves no row to train on, since data.train has {rows}; hold out fewer",
                hold_out.rows
            )));
        }
        let held_out = hold_out.map(|HoldOut { rows: held_out, seed }| {
            let key = keyed_rng(seed, Purpose::HoldOut, 0, 0).next_u64();
            (Permutation::new(rows, key), held_out)
        });
        let is_validation = split == Split::Validation;
        let len = match hold_out {
            Some(hold_out) if is_validation => hold_out.rows,
            Some(hold_out) => rows - hold_out.rows,
            None => rows,
        };
        Ok(Self { held_out, is_validation, len })
    }

    /// Those of some rows that are wanted, in their order.
    pub fn of(&self, rows: Range<u64>) -> impl Iterator<Item = u64> {
        rows.filter(move |&row| match &self.held_out {
            Some((order, count)) => (order.apply(row) < *count) == self.is_validation,
            None => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(hold_out: Option<HoldOut>, split: Split, rows: u64) -> Vec<u64> {
        let selection = Selection::new(hold_out, split, rows).unwrap();
        let selected: Vec<u64> = selection.of(0..rows).collect();
        assert_eq!(selected.len() as u64, selection.len);
        selected
    }

    fn held_out(rows: u64, seed: u64, of: u64) -> Vec<u64> {
        selected(Some(HoldOut { rows, seed }), Split::Validation, of)
    }

    #[test]
    fn every_row_is_in_one_of_the_splits_and_the_number_is_exact() {
        for of in [2, 3, 10, 64, 65, 1000] {
            for rows in [1, of / 2, of - 1] {
                let validation = held_out(rows, 5, of);
                assert_eq!(validation.len() as u64, rows);
                let train = selected(Some(HoldOut { rows, seed: 5 }), Split::Train, of);
                let mut both = [train, validation].concat();
                both.sort_unstable();
                assert!(both.into_iter().eq(0..of), "{rows} of {of}");
            }
        }
        for split in Split::ALL {
            assert!(selected(None, split, 7).into_iter().eq(0..7));
        }
    }

    #[test]
    fn a_part_of_the_rows_has_its_part_of_the_choice() {
        let selection = Selection::new(Some(HoldOut { rows: 30, seed: 2 }), Split::Validation, 100).unwrap();
        let parts = [0..1, 1..41, 41..100].map(|rows| selection.of(rows).collect::<Vec<_>>());
        assert_eq!(parts.concat(), held_out(30, 2, 100));
        assert!(held_out(20, 2, 100).iter().all(|row| parts.concat().contains(row)));
    }

    /// Jobs go on in later versions: the choice must never change.
    #[test]
    fn the_seed_decides_and_values_are_pinned() {
        assert_eq!(held_out(5, 1, 100), [6, 42, 54, 78, 90]);
        assert_eq!(held_out(5, 2, 100), [11, 25, 68, 77, 95]);
    }

    #[test]
    fn rows_are_left_to_train_on() {
        for rows in [10, 11, u64::MAX] {
            let error = Selection::new(Some(HoldOut { rows, seed: 1 }), Split::Train, 10).unwrap_err();
            assert!(error.is_config() && error.to_string().contains("data.train has 10"), "{error}");
        }
    }
}
