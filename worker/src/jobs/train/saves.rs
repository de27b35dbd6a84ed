//! What the saves of this start cost so far: what the record of a step tells, and whether another one fits before a forced end.

use std::time::Duration;

use crate::comm::{Collectives, CommError, ReduceOp};
use crate::signals::StopRequest;
use crate::train::Saved;

/// The saves of one start of a run.
#[derive(Debug)]
pub(super) struct Saves {
    /// Step of the newest checkpoint; of a run without one, the step it began at, since there is nothing to save.
    pub(super) newest: u64,
    /// Time that training stood still for checkpoints and that no record tells of yet.
    pub(super) stall: Duration,
    /// The longest save on this rank, from its begin to its commit.
    longest: Duration,
}

/// There is no time for a save any more.
#[derive(Debug, PartialEq)]
pub(super) struct TooLate {
    /// Seconds that saving took, on the slowest rank.
    pub(super) takes: f64,
    /// Seconds that are left, on the rank with the fewest.
    pub(super) left: f64,
}

impl Saves {
    /// None yet, of a run that begins or goes on at `step`.
    pub(super) fn since(step: u64) -> Self {
        Self { newest: step, stall: Duration::ZERO, longest: Duration::ZERO }
    }

    /// Notes a save that is complete.
    pub(super) fn note(&mut self, saved: &Saved) {
        self.newest = saved.step;
        self.longest = self.longest.max(saved.timings.total());
    }

    /// Whether a save that takes as long as the longest so far would not end before the process is killed; all ranks call it
    /// together and get the same answer.
    pub(super) fn too_late(
        &self,
        stop: &StopRequest,
        comm: &mut dyn Collectives,
    ) -> Result<Option<TooLate>, CommError> {
        let left = stop.time_left().map_or(f64::INFINITY, |left| left.as_secs_f64());
        let mut worst = [self.longest.as_secs_f64(), -left];
        comm.all_reduce("time to save", ReduceOp::Max, worst[..].as_mut().into())?;
        let [takes, left] = [worst[0], -worst[1]];
        Ok((takes > left).then_some(TooLate { takes, left }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Solo;

    #[test]
    fn what_took_longer_than_is_left_is_not_begun_again() {
        let mut saves = Saves::since(3);
        let timings =
            |secs| checkpoints::SaveTimings { stage: Duration::from_secs(secs), ..Default::default() };
        for (step, secs) in [(4, 20), (5, 7)] {
            saves.note(&Saved { step, timings: timings(secs) });
        }
        assert_eq!(saves.newest, 5);
        let too_late = |lead: Option<u64>| {
            let stop = StopRequest::with_lead(lead.map(Duration::from_secs));
            stop.set();
            saves.too_late(&stop, &mut Solo).unwrap()
        };
        assert_eq!((too_late(None), too_late(Some(1000))), (None, None));
        let late = too_late(Some(15)).unwrap();
        assert!(late.takes == 20.0 && late.left <= 15.0, "{late:?}");
        let stop = StopRequest::with_lead(Some(Duration::ZERO));
        stop.set();
        assert_eq!(Saves::since(0).too_late(&stop, &mut Solo).unwrap(), None, "nothing is known of saves");
    }
}
