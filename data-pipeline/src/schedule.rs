//! Which positions the steps of a run serve: global batches one after another, without those to skip, up to the end.

use std::ops::Range;

use crate::error::{Error, Result};

/// The positions of every step. The state of a run stays one integer: the position that the next step begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    global_batch: u64,
    /// Positions that are never served: ascending and apart.
    skipped: Vec<Range<u64>>,
    /// The position that the run ends at.
    end: u64,
}

impl Schedule {
    /// Steps of `global_batch` samples for ever.
    ///
    /// # Errors
    /// [`Error::Plan`] when `global_batch` is zero.
    pub fn new(global_batch: usize) -> Result<Self> {
        if global_batch == 0 {
            return Err(Error::Plan("global_batch_size is 0; use at least 1".into()));
        }
        Ok(Self { global_batch: global_batch as u64, skipped: Vec::new(), end: u64::MAX })
    }

    /// Never serves the data of these steps. Step k is the positions from k times `global_batch` on, whatever is skipped
    /// before it: steps of the data count from 0, and are not those that a run has finished.
    pub fn skip(mut self, steps: impl IntoIterator<Item = Range<u64>>) -> Self {
        let position = |step: u64| step.saturating_mul(self.global_batch);
        let steps = steps.into_iter().filter(|steps| !steps.is_empty());
        let mut ranges: Vec<Range<u64>> =
            steps.map(|steps| position(steps.start)..position(steps.end)).chain(self.skipped).collect();
        ranges.sort_by_key(|range| range.start);
        self.skipped = Vec::new();
        for range in ranges {
            match self.skipped.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => self.skipped.push(range),
            }
        }
        self
    }

    /// Ends before a position, skipped ones counted: for a number of epochs.
    pub fn end_at(mut self, position: u64) -> Self {
        self.end = self.end.min(position);
        self
    }

    /// Ends when so many samples have been served, skipped ones not counted; call it after [`skip`](Self::skip).
    pub fn end_after(self, samples: u64) -> Self {
        let end = self.skipped.iter().fold(samples, |end, skipped| {
            if skipped.start < end { end.saturating_add(skipped.end - skipped.start) } else { end }
        });
        self.end_at(end)
    }

    /// Samples of a whole step over all ranks.
    pub fn global_batch(&self) -> u64 {
        self.global_batch
    }

    /// The positions of the step that a run at `position` does next; none when the run has ended. A step is short at
    /// the end, and where a skipped stretch begins within it (which takes a start that is no multiple of the batch).
    pub fn step(&self, position: u64) -> Option<Range<u64>> {
        let next = self.skipped.partition_point(|range| range.end <= position);
        let (start, next) = match self.skipped.get(next) {
            Some(range) if range.start <= position => (range.end, next + 1),
            _ => (position, next),
        };
        let limit = self.skipped.get(next).map_or(self.end, |range| range.start.min(self.end));
        (start < self.end).then(|| start..start.saturating_add(self.global_batch).min(limit))
    }

    /// The position after the step that a run at `position` does next; none when the run has ended.
    pub fn next_position(&self, position: u64) -> Option<u64> {
        Some(self.step(position)?.end)
    }

    /// All steps from a position on.
    pub fn steps(&self, position: u64) -> Steps {
        Steps { schedule: self.clone(), position }
    }
}

/// The steps of a [`Schedule`].
#[derive(Debug, Clone)]
pub struct Steps {
    schedule: Schedule,
    position: u64,
}

impl Iterator for Steps {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let step = self.schedule.step(self.position)?;
        self.position = step.end;
        Some(step)
    }
}

/// Reads "a..b", the steps a to b - 1.
///
/// # Errors
/// [`Error::Setting`] for anything else, and when b is not above a.
pub(crate) fn parse_steps(text: &str) -> Result<Range<u64>> {
    let bounds = text
        .split_once("..")
        .and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
    match bounds {
        Some((from, to)) if from < to => Ok(from..to),
        _ => Err(Error::Setting(format!(
            "data.skip_steps has '{text}'; write \"a..b\" with a below b, which leaves out the global batches a to b - 1"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: &Schedule, position: u64) -> Vec<Range<u64>> {
        schedule.steps(position).take(100).collect()
    }

    #[test]
    fn skipped_steps_are_never_served_and_the_next_goes_on_behind_them() {
        let schedule = Schedule::new(10).unwrap().skip([5..6, 1..3, 2..4, 9..9]).end_at(75);
        assert_eq!(all(&schedule, 0), [0..10, 40..50, 60..70, 70..75]);
        assert_eq!(schedule.next_position(0), Some(10));
        assert_eq!(schedule.next_position(10), Some(50));
        assert_eq!(schedule.next_position(75), None);
        for (position, next) in [(9, 9..10), (39, 40..50), (40, 40..50), (49, 49..50), (74, 74..75)] {
            assert_eq!(schedule.step(position), Some(next), "from {position}");
        }
        assert_eq!(Schedule::new(10).unwrap().skip(std::iter::once(0..2)).end_at(15).step(0), None);
    }

    #[test]
    fn max_samples_counts_what_is_served() {
        let skipped = Schedule::new(10).unwrap().skip([1..2, 4..6]);
        for samples in 1..60 {
            let served: u64 =
                all(&skipped.clone().end_after(samples), 0).iter().map(|step| step.end - step.start).sum();
            assert_eq!(served, samples);
        }
        assert_eq!(all(&skipped.end_after(15).end_at(25), 0), [0..10, 20..25]);
    }

    #[test]
    fn every_position_resumes_the_same_steps() {
        let schedule = Schedule::new(7).unwrap().skip([2..3, 6..8]).end_after(40);
        let whole = all(&schedule, 0);
        for (index, step) in whole.iter().enumerate() {
            assert_eq!(all(&schedule, step.start), whole[index..]);
            assert_eq!(all(&schedule, step.end), whole[index + 1..]);
        }
    }

    #[test]
    fn the_ends_of_the_number_range_are_no_trap() {
        let schedule =
            Schedule::new(10).unwrap().skip(std::iter::once(u64::MAX - 1..u64::MAX)).end_after(u64::MAX);
        assert_eq!(schedule.step(u64::MAX - 3), Some(u64::MAX - 3..u64::MAX));
        assert_eq!(schedule.step(u64::MAX), None);
        assert!(Schedule::new(0).unwrap_err().is_config());
    }

    #[test]
    fn ranges_are_read_and_others_refused() {
        assert_eq!(parse_steps("3..10").unwrap(), 3..10);
        assert_eq!(parse_steps(" 3 .. 4 ").unwrap(), 3..4);
        for text in ["", "3", "3..", "..3", "4..4", "5..4", "-1..2", "a..b", "1..2..3"] {
            assert!(parse_steps(text).unwrap_err().to_string().contains("data.skip_steps"), "{text}");
        }
    }
}
