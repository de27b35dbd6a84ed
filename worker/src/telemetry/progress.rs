//! A live bar on a terminal; a plain line every so many steps otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::StepRecord;
use crate::say;

/// Shows the steps of a run.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    max_steps: u64,
    every: u64,
}

impl Progress {
    /// `every`: steps between two plain lines.
    pub fn new(step: u64, max_steps: u64, every: u64) -> Self {
        // The bar is drawn on standard error. mpirun gives ranks a terminal of its own as standard output only.
        let on_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = on_terminal.then(|| {
            let template = "{bar:30} {pos}/{len}  {msg}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(max_steps).with_position(step).with_style(style)
        });
        Self { bar, max_steps, every: every.max(1) }
    }

    /// Steps left after `step`.
    pub fn remaining(&self, step: u64) -> u64 {
        self.max_steps.saturating_sub(step)
    }

    /// Shows one step.
    pub fn show(&self, record: &StepRecord) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.step);
                bar.set_message(record.to_string());
            }
            None if record.step.is_multiple_of(self.every) || record.step == self.max_steps => {
                say!("step {}/{}  {record}", record.step, self.max_steps);
            }
            None => {}
        }
    }

    /// Says something between the steps.
    pub fn say(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => say!("{message}"),
        }
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
