//! Which checkpoints may go: nothing as new as the newest valid ones, nothing that thinning keeps for ever.

use crate::config::CheckpointConfig;

/// The steps that may be removed, out of `steps`.
///
/// `valid` are valid checkpoints from the newest down, as many as are to be kept; without that many, nothing goes.
/// `just_saved` stays even if others are newer, as after going back to an older checkpoint.
pub(crate) fn expendable(
    steps: &[u64],
    valid: &[u64],
    just_saved: Option<u64>,
    config: &CheckpointConfig,
) -> Vec<u64> {
    let oldest = match valid.last() {
        Some(&oldest) if valid.len() >= config.keep_last => oldest,
        _ => return Vec::new(),
    };
    let for_ever = |step: u64| config.keep_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
    let goes = |&step: &u64| step < oldest && Some(step) != just_saved && !for_ever(step);
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
        assert_eq!(expendable(&steps, &[30, 25], Some(30), &config(2, Some(20))), [10, 15]);
        assert_eq!(expendable(&steps, &[30, 25], Some(30), &config(2, None)), [10, 15, 20]);
        assert_eq!(expendable(&steps, &[30, 25, 20], None, &config(3, None)), [10, 15]);
    }

    #[test]
    fn damaged_ones_do_not_count() {
        assert_eq!(expendable(&[10, 15, 20, 25, 30], &[30, 15], Some(30), &config(2, None)), [10]);
        assert!(expendable(&[10, 20, 30], &[30], Some(30), &config(2, None)).is_empty());
        assert!(expendable(&[10, 20, 30], &[], None, &config(2, None)).is_empty());
    }

    #[test]
    fn the_one_just_saved_stays_although_others_are_newer() {
        assert_eq!(expendable(&[10, 15, 20, 30], &[30, 20], Some(15), &config(2, None)), [10]);
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
        let gone = expendable(steps, &valid, Some(saved), &config(keep_last, keep_every));
        steps.retain(|step| !gone.contains(step));
    }

    /// `<epoch>-<step>.ckpt`; nothing for `last.ckpt` and `best.ckpt`.
    fn reference_step(file: &str) -> Option<u64> {
        file.strip_suffix(".ckpt")?.split_once('-')?.1.parse().ok()
    }
}
