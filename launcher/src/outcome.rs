//! From the endings of the ranks and of mpirun to one exit code and one sentence.

use crate::event::Ending;
use nix::sys::signal::Signal;
use std::fmt;

/// Exit code of a worker that saved a checkpoint because it was asked to end.
pub const PREEMPTED: i32 = 75;

/// Exit code of failed communication between ranks; ranks that hang or do not start are reported as that.
const COMMUNICATION: i32 = 5;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every rank ended well.
    Finished,
    /// The ranks saved a checkpoint and stopped.
    Preempted,
    /// Told to stop while ranks started: one was ended by the request before it listened to it, and nothing was trained yet.
    StoppedEarly,
    /// This rank failed first.
    RankFailed {
        /// Which.
        rank: usize,
        /// How.
        ending: Ending,
    },
    /// This rank gave no sign of life any more, so that the run was ended.
    RankHangs {
        /// Which.
        rank: usize,
        /// For how long its heartbeat had not changed.
        seconds: u64,
    },
    /// Not every rank was started in time, so that the run was ended.
    NotStarted {
        /// How many were.
        started: usize,
        /// Of how many.
        ranks: usize,
        /// Within how long.
        seconds: u64,
    },
    /// No rank failed, but mpirun did.
    MpirunFailed(Ending),
    /// Nothing was started, because of so many hosts.
    HostsUnusable {
        /// How many, 1 or more.
        hosts: usize,
    },
    /// The user ended it with a second signal.
    Aborted {
        /// The second signal.
        signal: i32,
    },
}

impl Outcome {
    /// Judges a run by the endings of ranks in the order in which they came, and of mpirun.
    ///
    /// After the first failure mpirun sends SIGTERM to the other ranks, so a rank that ended in another way comes
    /// before those.
    pub fn judge(endings: &[(usize, Ending)], mpirun: Ending) -> Self {
        let fine = [Ending::Exit(0), Ending::Exit(PREEMPTED)];
        let terminated = [Ending::Signal(libc::SIGTERM), Ending::Exit(128 + libc::SIGTERM)];
        let failed = || endings.iter().filter(|(_, ending)| !fine.contains(ending));
        let of_itself = failed().find(|(_, ending)| !terminated.contains(ending));
        // mpirun ends with the code of the rank that failed; with another it ended the ranks for a reason of its own.
        let explained = || mpirun == Ending::Exit(128 + libc::SIGTERM);
        match of_itself.or_else(|| failed().next().filter(|_| explained())) {
            Some(&(rank, ending)) => Self::RankFailed { rank, ending },
            None if mpirun != Ending::Exit(0) => Self::MpirunFailed(mpirun),
            None if endings.iter().any(|(_, ending)| *ending == Ending::Exit(PREEMPTED)) => Self::Preempted,
            None => Self::Finished,
        }
    }

    /// The same, if the launcher was told to stop and passed that on: a rank that the request itself ended did not listen yet.
    pub fn after_a_request(self) -> Self {
        match self {
            Self::RankFailed { ending: Ending::Signal(libc::SIGUSR1), .. } => Self::StoppedEarly,
            // Shells and container commands report a signal as 128 + n.
            Self::RankFailed { ending: Ending::Exit(code), .. } if code == 128 + libc::SIGUSR1 => {
                Self::StoppedEarly
            }
            other => other,
        }
    }

    /// The rank to blame, if it is one.
    pub fn blamed(self) -> Option<usize> {
        match self {
            Self::RankFailed { rank, .. } | Self::RankHangs { rank, .. } => Some(rank),
            _ => None,
        }
    }

    /// Whether a rank failed because it waited for another one in vain, or may have.
    pub fn is_about_waiting(self) -> bool {
        self.code() == Ending::Exit(COMMUNICATION).code()
    }

    /// The launcher's exit code, see the crate's table.
    pub fn code(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Preempted | Self::StoppedEarly => Ending::Exit(PREEMPTED).code(),
            Self::RankFailed { ending, .. } | Self::MpirunFailed(ending) => ending.code(),
            Self::RankHangs { .. } | Self::NotStarted { .. } => Ending::Exit(COMMUNICATION).code(),
            Self::HostsUnusable { .. } => 1,
            Self::Aborted { signal } => Ending::Signal(signal).code(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => write!(f, "every rank ended well"),
            Self::Preempted => write!(
                f,
                "stopped after saving a checkpoint (exit code 75); the same command goes on from it"
            ),
            Self::StoppedEarly => write!(
                f,
                "stopped before there was anything to save (exit code 75); the same command goes on from where the run was"
            ),
            Self::RankFailed { rank, ending } => write!(f, "rank {rank} failed first: {ending}"),
            Self::RankHangs { rank, seconds } => {
                write!(
                    f,
                    "rank {rank} hangs: its heartbeat has not changed for {seconds} s; the run was ended"
                )
            }
            Self::NotStarted { started, ranks, seconds } => {
                write!(
                    f,
                    "only {started} of {ranks} ranks were started within {seconds} s; the run was ended"
                )
            }
            Self::MpirunFailed(ending) => write!(f, "mpirun failed, though no rank did: {ending}"),
            Self::HostsUnusable { hosts: 1 } => write!(f, "a host cannot be used, so nothing was started"),
            Self::HostsUnusable { hosts } => {
                write!(f, "{hosts} hosts cannot be used, so nothing was started")
            }
            Self::Aborted { signal } => {
                write!(f, "ended by a second {} without saving", signal_name(*signal))
            }
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => match meaning(*code) {
                Some(meaning) => write!(f, "exit code {code} ({meaning})"),
                None => write!(f, "exit code {code}"),
            },
            Self::Signal(signal) => write!(f, "killed by signal {signal} ({})", signal_name(*signal)),
        }
    }
}

fn meaning(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "usage or configuration",
        3 => "data",
        4 => "checkpoint",
        COMMUNICATION => "communication between ranks",
        6 => "non-finite loss",
        7 => "not what the run recorded",
        PREEMPTED => "preempted",
        101 => "panic",
        205 => "mpirun lost a host",
        _ => return None,
    })
}

fn signal_name(signal: i32) -> &'static str {
    Signal::try_from(signal).map_or("a real-time signal", Signal::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ending::{Exit, Signal};

    #[test]
    fn the_first_failure_is_blamed_and_not_those_mpirun_ended() {
        let judge = |endings: &[(usize, Ending)], mpirun| Outcome::judge(endings, mpirun);
        let failed = |rank, ending| Outcome::RankFailed { rank, ending };
        assert_eq!(judge(&[(0, Exit(0)), (1, Exit(0))], Exit(0)), Outcome::Finished);
        assert_eq!(judge(&[(1, Exit(75)), (0, Exit(0))], Exit(0)), Outcome::Preempted);
        assert_eq!(judge(&[(1, Exit(75)), (0, Exit(4)), (2, Exit(5))], Exit(4)), failed(0, Exit(4)));
        assert_eq!(judge(&[(0, Signal(15)), (2, Exit(143)), (1, Exit(3))], Exit(3)), failed(1, Exit(3)));
        assert_eq!(judge(&[(2, Signal(15)), (0, Signal(15))], Exit(143)), failed(2, Signal(15)));
        assert_eq!(judge(&[(2, Signal(15))], Exit(205)), Outcome::MpirunFailed(Exit(205)));
        assert_eq!(judge(&[(0, Exit(0))], Exit(1)), Outcome::MpirunFailed(Exit(1)));
        assert_eq!(judge(&[], Signal(9)), Outcome::MpirunFailed(Signal(9)));
    }

    #[test]
    fn a_rank_that_a_request_ended_had_nothing_to_save() {
        let after = |ending| Outcome::RankFailed { rank: 1, ending }.after_a_request();
        assert_eq!([Signal(10), Exit(138)].map(after), [Outcome::StoppedEarly; 2]);
        for ending in [Signal(9), Exit(137), Exit(4)] {
            assert_eq!(after(ending), Outcome::RankFailed { rank: 1, ending });
        }
        assert_eq!(Outcome::Finished.after_a_request(), Outcome::Finished);
    }

    #[test]
    fn codes_and_sentences_name_code_and_signal() {
        let killed = Outcome::RankFailed { rank: 3, ending: Signal(9) };
        assert_eq!(
            (killed.code(), killed.to_string().as_str()),
            (137, "rank 3 failed first: killed by signal 9 (SIGKILL)")
        );
        let data = Outcome::RankFailed { rank: 0, ending: Exit(3) };
        assert_eq!((data.code(), data.to_string().as_str()), (3, "rank 0 failed first: exit code 3 (data)"));
        assert_eq!(Exit(7).to_string(), "exit code 7 (not what the run recorded)");
        assert_eq!((Outcome::Preempted.code(), Outcome::StoppedEarly.code()), (75, 75));
        let hangs = Outcome::RankHangs { rank: 1, seconds: 600 };
        assert_eq!((hangs.code(), hangs.blamed()), (5, Some(1)));
        let aborted = Outcome::Aborted { signal: 2 };
        assert_eq!(
            (aborted.code(), aborted.to_string().as_str()),
            (130, "ended by a second SIGINT without saving")
        );
    }
}
