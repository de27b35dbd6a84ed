//! A status in a few lines for people.

use super::{RankState, RankStatus, RunState, Status};
use std::fmt::Write;

/// Lines about ranks that are not well; more of them say nothing new.
const MOST_RANKS: usize = 16;

/// The text, a line for each thing that is known.
pub fn text(status: &Status) -> String {
    let mut text = format!("{}: {}\n", status.run_dir.display(), headline(status));
    if let Some(step) = status.step {
        let _ = writeln!(text, "step        {}", progress(step, status));
    }
    if let Some(checkpoint) = status.checkpoint {
        let _ = writeln!(text, "checkpoint  step {}, {} ago", checkpoint.step, duration(checkpoint.age_s));
    }
    if !status.ranks.is_empty() {
        let _ = writeln!(text, "ranks       {}", counts(&status.ranks));
        let unwell = status.ranks.iter().filter(|rank| rank.state != RankState::Alive);
        for rank in unwell.take(MOST_RANKS) {
            let RankStatus { state, age_s, heartbeat, flight } = rank;
            let _ = write!(
                text,
                "  rank {} {}, heartbeat {} ago from process {} on {}: ",
                heartbeat.rank,
                name(*state),
                duration(*age_s),
                heartbeat.pid,
                heartbeat.host
            );
            let _ = match flight {
                Some(flight) => writeln!(text, "{flight}"),
                None => writeln!(text, "{heartbeat}"),
            };
        }
    }
    if let (Some(end), Some(age)) = (&status.last_end, status.last_end_age_s) {
        let _ = writeln!(
            text,
            "last end    {} ago with exit code {}: {}",
            duration(age),
            end.exit_code,
            end.reason
        );
    }
    text
}

fn headline(status: &Status) -> String {
    let state = match status.state {
        RunState::Running => "running",
        RunState::Waiting => "waiting to be started again",
        RunState::Ended => "ended",
        RunState::Lost => "neither running nor ended: its launcher or machine was killed",
        RunState::Idle if status.step.is_none() && status.checkpoint.is_none() => "nothing has run here",
        RunState::Idle => "not running",
    };
    match &status.launch {
        None => state.to_owned(),
        Some(launch) => format!(
            "{state}, {} rank{} launched on {}, {} restart{}",
            launch.ranks,
            plural(launch.ranks),
            launch.host,
            launch.restarts,
            plural(launch.restarts as usize)
        ),
    }
}

fn progress(step: u64, status: &Status) -> String {
    let mut text = step.to_string();
    if let Some(max) = status.max_steps {
        let _ = write!(text, " of {max}");
    }
    match status.loss {
        Some(loss) => {
            let _ = write!(text, ", loss {loss:.4}");
        }
        None => text.push_str(", loss not finite"),
    }
    if let Some(rate) = status.examples_per_s {
        let _ = write!(text, ", {rate:.1} examples/s");
    }
    if let Some(age) = status.metric_age_s {
        let _ = write!(text, ", {} ago", duration(age));
    }
    text
}

fn counts(ranks: &[RankStatus]) -> String {
    let states = [RankState::Alive, RankState::Stale, RankState::Gone];
    let counted = states.map(|state| (ranks.iter().filter(|rank| rank.state == state).count(), name(state)));
    let present = counted.iter().filter(|(count, _)| *count > 0);
    present.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn name(state: RankState) -> &'static str {
    match state {
        RankState::Alive => "alive",
        RankState::Stale => "stale",
        RankState::Gone => "gone",
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The two largest units of a time in seconds.
fn duration(seconds: f64) -> String {
    // Saturates, and a time is never negative.
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_two_units() {
        let texts = [0.9, 59.0, 61.0, 7322.0, 180_000.0].map(duration);
        assert_eq!(texts, ["0 s", "59 s", "1 min 1 s", "2 h 2 min", "2 d 2 h"]);
    }
}
