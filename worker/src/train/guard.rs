//! Which steps leave the parameters as they are: those whose figures are not finite, and spikes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::TrainerConfig;

/// Weight of the newest value in the moving mean and variance, once there are many.
const NEWEST: f64 = 0.01;
/// Values that must have been seen before one is called a spike.
const LEAST: u64 = 50;

const NAMES: [&str; 7] = [
    "guard.without_update",
    "guard.skipped_in_row",
    "guard.values",
    "guard.loss_mean_bits",
    "guard.loss_variance_bits",
    "guard.grad_norm_mean_bits",
    "guard.grad_norm_variance_bits",
];

/// Recorded while steps are skipped one after the other.
const ROW_BEGINS: &str = "guard.row_begins";

/// Why a step changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The loss or the gradient norm is not finite.
    NotFinite,
    /// The loss is far above what it was.
    LossSpike,
    /// The gradient norm is far above what it was.
    GradNormSpike,
}

impl Skip {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFinite => "loss or gradient is not finite",
            Self::LossSpike => "the loss is a spike",
            Self::GradNormSpike => "the gradient norm is a spike",
        }
    }
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The parameters are updated.
    Update,
    /// They are left as they are, and the run goes on.
    Skip(Skip),
    /// The run ends.
    Stop,
}

/// What decides it: figures of the whole step, which all ranks have with the same bits, so that all decide alike.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Guard {
    /// Steps so far without an update, skipped or without rows.
    without_update: u64,
    /// Steps skipped one after the other just now.
    in_row: u64,
    /// The position that the data of the first of them begins at.
    row_begins: Option<u64>,
    /// Updates that the two below have seen.
    values: u64,
    loss: Moving,
    grad_norm: Moving,
}

impl Guard {
    /// What becomes of a step with this mean loss and gradient norm. A spike that stays is a new level, not a spike: after
    /// `trainer.max_skipped_steps_in_row` it is let through.
    pub fn judge(&self, loss: f64, grad_norm: f64, trainer: &TrainerConfig) -> Verdict {
        let may_skip = self.in_row < trainer.max_skipped_steps_in_row;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return if may_skip { Verdict::Skip(Skip::NotFinite) } else { Verdict::Stop };
        }
        let Some(bound) = trainer.skip_spikes_above.filter(|_| may_skip && self.values >= LEAST) else {
            return Verdict::Update;
        };
        if self.loss.is_spike(loss, bound) {
            Verdict::Skip(Skip::LossSpike)
        } else if self.grad_norm.is_spike(grad_norm, bound) {
            Verdict::Skip(Skip::GradNormSpike)
        } else {
            Verdict::Update
        }
    }

    /// Takes in the figures of a step that updates the parameters.
    pub fn updated(&mut self, loss: f64, grad_norm: f64) {
        (self.in_row, self.row_begins) = (0, None);
        self.values += 1;
        let weight = NEWEST.max(1.0 / self.values as f64);
        self.loss.add(loss, weight);
        self.grad_norm.add(grad_norm, weight);
    }

    /// Counts a step that does not: a skipped one, or one without rows. Its data begins at `position`.
    pub fn left_out(&mut self, skip: Option<Skip>, position: u64) {
        self.without_update += 1;
        if skip.is_some() {
            self.in_row += 1;
            self.row_begins.get_or_insert(position);
        }
    }

    /// Steps skipped one after the other just now.
    pub fn in_row(&self) -> u64 {
        self.in_row
    }

    /// The position that the data of the first of them begins at, if there are any and it was kept: earlier versions did
    /// not.
    pub fn row_begins(&self) -> Option<u64> {
        self.row_begins
    }

    /// The number of the update that comes after `steps` steps, from 1: what the moments' bias is corrected by.
    pub fn next_update(&self, steps: u64) -> u64 {
        steps.saturating_sub(self.without_update) + 1
    }

    /// What a checkpoint keeps of it.
    pub(super) fn counters(&self) -> impl Iterator<Item = (String, u64)> {
        let Self { without_update, in_row, row_begins, values, loss, grad_norm } = *self;
        let moving = [loss.mean, loss.variance, grad_norm.mean, grad_norm.variance].map(f64::to_bits);
        let figures = [without_update, in_row, values].into_iter().chain(moving);
        let begins = row_begins.map(|position| (ROW_BEGINS.to_owned(), position));
        NAMES.into_iter().map(str::to_owned).zip(figures).chain(begins)
    }

    /// What a checkpoint kept; nothing seen yet if it was written by a version that kept nothing.
    pub(super) fn from_counters(counters: &BTreeMap<String, u64>) -> Self {
        let [without_update, in_row, values, moving @ ..] =
            NAMES.map(|name| counters.get(name).copied().unwrap_or_default());
        let [loss_mean, loss_variance, norm_mean, norm_variance] = moving.map(f64::from_bits);
        Self {
            without_update,
            in_row,
            row_begins: counters.get(ROW_BEGINS).copied(),
            values,
            loss: Moving { mean: loss_mean, variance: loss_variance },
            grad_norm: Moving { mean: norm_mean, variance: norm_variance },
        }
    }
}

/// Exponential moving mean and variance.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moving {
    mean: f64,
    variance: f64,
}

impl Moving {
    fn add(&mut self, value: f64, weight: f64) {
        let distance = value - self.mean;
        self.mean += weight * distance;
        self.variance = (1.0 - weight) * (self.variance + weight * distance * distance);
    }

    /// Whether a value lies more than `bound` standard deviations above the mean.
    fn is_spike(&self, value: f64, bound: f64) -> bool {
        self.variance > 0.0 && value - self.mean > bound * self.variance.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trainer(skip_spikes_above: Option<f64>) -> TrainerConfig {
        TrainerConfig { max_skipped_steps_in_row: 2, skip_spikes_above, ..TrainerConfig::default() }
    }

    /// A guard that has seen losses around 2 and norms around 1.
    fn experienced() -> Guard {
        let mut guard = Guard::default();
        (0..200).for_each(|step| {
            let wave = f64::from(step).sin();
            guard.updated(2.0 + 0.1 * wave, 1.0 + 0.1 * wave);
        });
        guard
    }

    #[test]
    fn what_is_not_finite_is_skipped_so_often_in_a_row_and_then_ends_the_run() {
        let trainer = trainer(None);
        let mut guard = Guard::default();
        for (loss, grad_norm) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            assert_eq!(guard.judge(loss, grad_norm, &trainer), Verdict::Skip(Skip::NotFinite));
            guard.left_out(Some(Skip::NotFinite), 0);
        }
        assert_eq!(guard.judge(f64::NAN, 1.0, &trainer), Verdict::Stop);
        assert_eq!(guard.next_update(2), 1, "bias correction counts updates");
        guard.updated(1.0, 1.0);
        assert_eq!(
            guard.judge(f64::NAN, 1.0, &trainer),
            Verdict::Skip(Skip::NotFinite),
            "no longer in a row"
        );
        let strict = TrainerConfig { max_skipped_steps_in_row: 0, ..trainer };
        assert_eq!(Guard::default().judge(f64::NAN, 1.0, &strict), Verdict::Stop);
    }

    #[test]
    fn it_is_known_where_the_data_of_the_skipped_steps_begins() {
        let mut guard = Guard::default();
        // The second step had no rows, and the data between 30 and 60 is never served.
        for (skip, position) in [(Some(Skip::NotFinite), 10), (None, 20), (Some(Skip::LossSpike), 60)] {
            guard.left_out(skip, position);
        }
        assert_eq!((guard.in_row(), guard.row_begins()), (2, Some(10)));
        guard.updated(1.0, 1.0);
        guard.left_out(None, 80);
        assert_eq!((guard.in_row(), guard.row_begins()), (0, None));
        guard.left_out(Some(Skip::NotFinite), 90);
        assert_eq!(guard.row_begins(), Some(90));
    }

    #[test]
    fn a_spike_is_skipped_and_a_new_level_is_not() {
        let (trainer, mut guard) = (trainer(Some(6.0)), experienced());
        assert_eq!(guard.judge(2.1, 1.1, &trainer), Verdict::Update);
        assert_eq!(guard.judge(0.1, 0.1, &trainer), Verdict::Update, "only what is above is a spike");
        assert_eq!(guard.judge(2.1, 9.0, &trainer), Verdict::Skip(Skip::GradNormSpike));
        assert_eq!(
            guard.judge(9.0, 9.0, &super::TrainerConfig::default()),
            Verdict::Update,
            "off by default"
        );
        for _ in 0..2 {
            assert_eq!(guard.judge(9.0, 1.1, &trainer), Verdict::Skip(Skip::LossSpike));
            guard.left_out(Some(Skip::LossSpike), 0);
        }
        assert_eq!(guard.judge(9.0, 1.1, &trainer), Verdict::Update);
        assert_eq!(Guard::default().judge(9e9, 9e9, &trainer), Verdict::Update, "nothing is known yet");
    }

    #[test]
    fn the_moving_figures_are_those_of_the_values() {
        let guard = experienced();
        // The mean and variance of a sine are 0 and 1/2.
        assert!((guard.loss.mean - 2.0).abs() < 0.02, "{guard:?}");
        assert!((guard.loss.variance / 0.005 - 1.0).abs() < 0.2, "{guard:?}");
    }

    #[test]
    fn a_checkpoint_keeps_every_bit() {
        let mut guard = experienced();
        assert_eq!(Guard::from_counters(&guard.counters().collect()), guard);
        guard.left_out(Some(Skip::LossSpike), 40);
        assert_eq!(Guard::from_counters(&guard.counters().collect()), guard);
        assert_eq!(Guard::from_counters(&BTreeMap::new()), Guard::default());
    }
}
