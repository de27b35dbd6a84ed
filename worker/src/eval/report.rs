//! The figures of an evaluation, for people and as JSON.

use std::fmt;

use data_pipeline::Task;
use serde::Serialize;

/// Mean losses over a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Losses {
    /// Rows measured.
    pub examples: u64,
    /// Mean loss per row (the reference's `lm/accumulated_loss`, weighted by rows).
    pub loss: f64,
    /// Its token part.
    pub token_ce: f64,
    /// Its stopping part.
    pub stop_loss: f64,
}

/// How often the answers were right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answers {
    /// Share of rows whose inserted tokens are the whole answer and nothing else.
    pub exact_match: f64,
    /// Mean share of an answer's tokens that stand at their place.
    pub token_accuracy: f64,
    /// Exact match as the reference counts it: an answer that stops early with all of its batch counts as right.
    pub reference_exact_match: f64,
    /// Token accuracy as the reference counts it, padding included.
    pub reference_token_accuracy: f64,
    /// Mean number of inserted tokens.
    pub inserted_tokens: f64,
}

/// All figures of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// Mean losses.
    #[serde(flatten)]
    pub losses: Losses,
    /// Right answers, for tasks that have some.
    #[serde(flatten)]
    pub answers: Option<Answers>,
}

/// A report and the step of the weights it is about.
#[derive(Debug, Serialize)]
pub struct ReportOfStep {
    step: u64,
    #[serde(flatten)]
    report: Report,
}

impl Report {
    /// The names of the figures of a task, the numbers of things counted left out.
    pub fn figures(task: Task) -> &'static [&'static str] {
        const ALL: [&str; 7] = [
            "loss",
            "token_ce",
            "stop_loss",
            "exact_match",
            "token_accuracy",
            "reference_exact_match",
            "reference_token_accuracy",
        ];
        const LOSSES: usize = 3;
        if task == Task::Star { &ALL } else { &ALL[..LOSSES] }
    }

    /// The figure of that name, if there is one and it is finite.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let json = serde_json::to_value(self).ok()?;
        json.get(name)?.as_f64().filter(|value| value.is_finite())
    }

    /// For a file of JSON lines.
    pub fn of_step(self, step: u64) -> ReportOfStep {
        ReportOfStep { step, report: self }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Losses { examples, loss, token_ce, stop_loss } = self.losses;
        write!(f, "{examples} examples, loss {loss:.4} (token {token_ce:.4} stop {stop_loss:.4})")?;
        if let Some(answers) = self.answers {
            write!(
                f,
                ", exact match {:.4}, token accuracy {:.4} (as the reference counts: {:.4}, {:.4})",
                answers.exact_match,
                answers.token_accuracy,
                answers.reference_exact_match,
                answers.reference_token_accuracy
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_found_by_its_name_and_only_if_it_is_finite() {
        let losses = Losses { examples: 3, loss: 1.5, token_ce: 1.0, stop_loss: f64::NAN };
        let answers = Answers {
            exact_match: 0.5,
            token_accuracy: 0.75,
            reference_exact_match: 0.5,
            reference_token_accuracy: 0.75,
            inserted_tokens: 4.0,
        };
        let star = Report { losses, answers: Some(answers) };
        for name in Report::figures(Task::Star) {
            assert_eq!(star.figure(name).is_some(), *name != "stop_loss", "{name}");
        }
        let text = Report { losses, answers: None };
        assert_eq!(Report::figures(Task::Text), ["loss", "token_ce", "stop_loss"]);
        assert_eq!((text.figure("loss"), text.figure("exact_match")), (Some(1.5), None));
    }
}
