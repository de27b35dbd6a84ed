//! The figures of an evaluation, for people and as JSON.

use std::fmt;

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
