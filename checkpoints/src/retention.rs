//! Which checkpoints may go: nothing as new as the newest valid ones, none of the best, nothing that thinning keeps for
//! ever.

use crate::config::{CheckpointConfig, Mode};

/// Steps with a figure, the best first; of equals the newest first. What is not a number is no figure.
pub(crate) fn ranked(mut figures: Vec<(u64, f64)>, mode: Mode) -> Vec<u64> {
    figures.retain(|(_, value)| !value.is_nan());
    figures.sort_by(|(step, value), (other_step, other)| {
        let order = value.total_cmp(other);
        let order = if mode == Mode::Max { order.reverse() } else { order };
        order.then(other_step.cmp(step))
    });
    figures.into_iter().map(|(step, _)| step).collect()
}

/// The steps that may be removed, out of `steps`.
///
/// `valid` are valid checkpoints from the newest down, as many as are to be kept; without that many, nothing goes.
/// `spared` stay whatever their age: the best ones, and the one just saved even if others are newer, as after going
/// back to an older checkpoint.
pub(crate) fn expendable(
    steps: &[u64],
    valid: &[u64],
    spared: &[u64],
    config: &CheckpointConfig,
) -> Vec<u64> {
    let oldest = match valid.last() {
        Some(&oldest) if valid.len() >= config.keep_last => oldest,
        _ => return Vec::new(),
    };
    let for_ever = |step: u64| config.keep_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
    let goes = |&step: &u64| step < oldest && !spared.contains(&step) && !for_ever(step);
    steps.iter().copied().filter(goes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keep_last: usize, keep_every: Option<u64>) -> CheckpointConfig {
        CheckpointConfig { keep_last, keep_every, ..Default::default() }
    }

    #[test]
    fn older_ones_go_and_multiples_stay() {
        let steps = [10, 15, 20, 25, 30];
        assert_eq!(expendable(&steps, &[30, 25], &[30], &config(2, Some(20))), [10, 15]);
        assert_eq!(expendable(&steps, &[30, 25], &[30], &config(2, None)), [10, 15, 20]);
        assert_eq!(expendable(&steps, &[30, 25, 20], &[], &config(3, None)), [10, 15]);
    }

    #[test]
    fn the_best_come_first_and_of_equals_the_newest() {
        let figures = vec![(10, 2.0), (20, 1.0), (30, f64::NAN), (40, 2.0), (50, -0.5)];
        assert_eq!(ranked(figures.clone(), Mode::Min), [50, 20, 40, 10]);
        assert_eq!(ranked(figures, Mode::Max), [40, 10, 20, 50]);
    }

    #[test]
    fn damaged_ones_do_not_count() {
        assert_eq!(expendable(&[10, 15, 20, 25, 30], &[30, 15], &[30], &config(2, None)), [10]);
        assert!(expendable(&[10, 20, 30], &[30], &[30], &config(2, None)).is_empty());
        assert!(expendable(&[10, 20, 30], &[], &[], &config(2, None)).is_empty());
    }

    #[test]
    fn the_one_just_saved_stays_although_others_are_newer() {
        assert_eq!(expendable(&[10, 15, 20, 30], &[30, 20], &[15], &config(2, None)), [10]);
    }

    /// Apart from the number of newest ones kept (one there, at least two here) the rule is the reference's.
    #[test]
    fn golden_thinning_keeps_what_the_reference_keeps() {
        let text =
            std::fs::read_to_string(test_support::golden_dir().join("checkpoint_thinning.json")).unwrap();
        let runs: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(!runs.is_empty());
        for run in &runs {
            let number = |key: &str| run[key].as_u64().unwrap();
            let every = Some(number("every_n_train_steps") * number("keep_multiple"));
            let (mut one, mut two) = (Vec::new(), Vec::new());
            for entry in run["log"].as_array().unwrap() {
                let saved = entry["saved"].as_u64().unwrap();
                let files = entry["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap());
                let mut expected: Vec<u64> = files.filter_map(reference_step).collect();
                expected.sort_unstable();
                save(&mut one, saved, 1, every);
                assert_eq!(one, expected, "after {saved}");
                save(&mut two, saved, 2, every);
                let previous = saved.checked_sub(number("every_n_train_steps")).filter(|&step| step > 0);
                expected.extend(previous.filter(|step| !expected.contains(step)));
                expected.sort_unstable();
                assert_eq!(two, expected, "after {saved}");
            }
        }
    }

    fn save(steps: &mut Vec<u64>, saved: u64, keep_last: usize, keep_every: Option<u64>) {
        steps.push(saved);
        let valid: Vec<u64> = steps.iter().rev().take(keep_last).copied().collect();
        let gone = expendable(steps, &valid, &[saved], &config(keep_last, keep_every));
        steps.retain(|step| !gone.contains(step));
    }

    /// `<epoch>-<step>.ckpt`; nothing for `last.ckpt` and `best.ckpt`.
    fn reference_step(file: &str) -> Option<u64> {
        file.strip_suffix(".ckpt")?.split_once('-')?.1.parse().ok()
    }
}
