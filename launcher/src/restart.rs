//! Whether and when a run that ended is started again.

use crate::event::Ending;
use crate::outcome::Outcome;
use crate::run_dir::{Checkpoint, newest_checkpoint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait before a restart, unless the first one is longer.
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// How often and how fast to start again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestartPolicy {
    /// Restarts without a new checkpoint between them.
    pub most: u32,
    /// Wait before the first of them; each further one doubles it, up to five minutes.
    pub delay: Duration,
}

/// A restart that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// Wait before it.
    pub delay: Duration,
    /// Restarts that are left after it if no checkpoint is saved.
    pub left: u32,
}

/// The restarts of one run; counted anew whenever an attempt saved a checkpoint.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    run_dir: Option<PathBuf>,
    in_vain: u32,
    /// The newest checkpoint when the attempt began.
    before: Option<Checkpoint>,
}

impl Restarts {
    /// None so far, right before the first attempt.
    pub fn new(policy: RestartPolicy, run_dir: Option<PathBuf>) -> Self {
        let mut restarts = Self { policy, run_dir, in_vain: 0, before: None };
        restarts.before = restarts.newest();
        restarts
    }

    /// Decides after an attempt with these worker arguments; `--fresh` is removed from them once the worker has obeyed
    /// it, because the next attempt has to resume what this one made.
    pub fn after(&mut self, outcome: Outcome, worker_args: &mut Vec<OsString>) -> Option<Restart> {
        let newest = self.newest();
        let is_fresh = worker_args.iter().any(|arg| arg == "--fresh");
        let step = |checkpoint: Option<Checkpoint>| checkpoint.map(|checkpoint| checkpoint.step);
        if newest != self.before && (is_fresh || step(newest) > step(self.before)) && newest.is_some() {
            self.in_vain = 0;
        }
        // What was there before a fresh start is moved away by the worker, unless it never came to that.
        if self.before.is_none() || newest != self.before {
            worker_args.retain(|arg| arg != "--fresh");
        }
        self.before = newest;
        if !is_transient(outcome) || self.in_vain >= self.policy.most {
            return None;
        }
        let delay = self.policy.delay.saturating_mul(2_u32.saturating_pow(self.in_vain));
        self.in_vain += 1;
        Some(Restart {
            delay: delay.min(LONGEST_DELAY.max(self.policy.delay)),
            left: self.policy.most - self.in_vain,
        })
    }

    fn newest(&self) -> Option<Checkpoint> {
        self.run_dir.as_deref().and_then(newest_checkpoint)
    }
}

/// Whether the same command may well go better the next time.
fn is_transient(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Finished | Outcome::Aborted { .. } => false,
        Outcome::Preempted
        | Outcome::StoppedEarly
        | Outcome::RankHangs { .. }
        | Outcome::NotStarted { .. } => true,
        Outcome::MpirunFailed(_) | Outcome::HostsUnusable { .. } => true,
        Outcome::RankFailed { ending: Ending::Signal(_), .. } => true,
        // Shells and container commands report a signal as 128 + n.
        Outcome::RankFailed { ending: Ending::Exit(code), .. } => {
            matches!(code, 1 | 5 | 101 | 129..=192)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const KILLED: Outcome = Outcome::RankFailed { rank: 1, ending: Ending::Signal(9) };

    fn restarts(most: u32, seconds: u64, run_dir: Option<&Path>) -> Restarts {
        let policy = RestartPolicy { most, delay: Duration::from_secs(seconds) };
        Restarts::new(policy, run_dir.map(Path::to_path_buf))
    }

    fn save(run_dir: &Path, step: u64) {
        let folder = run_dir.join(format!("checkpoints/step-{step:09}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("manifest.json"), "{}").unwrap();
    }

    #[test]
    fn only_what_may_go_better_is_started_again() {
        let again = |ending| {
            restarts(1, 1, None).after(Outcome::RankFailed { rank: 0, ending }, &mut vec![]).is_some()
        };
        for code in [1, 5, 101, 128 + 9] {
            assert!(again(Ending::Exit(code)), "{code}");
        }
        for code in [2, 3, 4, 6, 7, 255] {
            assert!(!again(Ending::Exit(code)), "{code}");
        }
        let more = [
            (KILLED, true),
            (Outcome::RankHangs { rank: 0, seconds: 600 }, true),
            (Outcome::NotStarted { started: 1, ranks: 2, seconds: 300 }, true),
            (Outcome::MpirunFailed(Ending::Exit(205)), true),
            (Outcome::HostsUnusable { hosts: 1 }, true),
            (Outcome::Preempted, true),
            (Outcome::Finished, false),
            (Outcome::Aborted { signal: 15 }, false),
        ];
        for (outcome, expected) in more {
            assert_eq!(restarts(1, 1, None).after(outcome, &mut vec![]).is_some(), expected, "{outcome}");
            assert_eq!(restarts(0, 1, None).after(outcome, &mut vec![]), None);
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let delays = |first, count| {
            let mut restarts = restarts(100, first, None);
            (0..count)
                .map(|_| restarts.after(KILLED, &mut vec![]).unwrap().delay.as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(delays(10, 7), [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delays(400, 2), [400, 400]);
        assert_eq!(delays(1, 100).pop(), Some(300));
    }

    #[test]
    fn a_new_checkpoint_starts_the_count_anew_and_an_old_one_does_not() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), 10);
        let mut restarts = restarts(2, 10, Some(run.path()));
        let mut next = || restarts.after(KILLED, &mut vec![]);
        let restart = |seconds, left| Some(Restart { delay: Duration::from_secs(seconds), left });
        assert_eq!(next(), restart(10, 1));
        save(run.path(), 10);
        assert_eq!(next(), restart(20, 0));
        save(run.path(), 20);
        assert_eq!(next(), restart(10, 1));
        assert_eq!(next(), restart(20, 0));
        assert_eq!(next(), None);
    }

    #[test]
    fn fresh_is_said_until_it_is_done() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), 500);
        let mut restarts = restarts(3, 1, Some(run.path()));
        let mut args: Vec<OsString> = ["train", "--fresh", "seed=1"].map(Into::into).into();
        restarts.after(KILLED, &mut args);
        assert_eq!(args.len(), 3, "the old run is still there");
        fs::remove_dir_all(run.path().join("checkpoints")).unwrap();
        save(run.path(), 100);
        assert_eq!(restarts.after(KILLED, &mut args).unwrap().left, 2);
        assert_eq!(args, ["train", "seed=1"]);
    }
}
