//! What a run is, in a few lines at its start.

use std::fmt;

/// Labelled lines, aligned.
#[derive(Debug, Default)]
pub struct Banner {
    lines: Vec<(&'static str, String)>,
}

impl Banner {
    /// Adds a line.
    pub fn line(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.lines.push((label, value.into()));
        self
    }
}

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (number, (label, value)) in self.lines.iter().enumerate() {
            let start = if number == 0 { "" } else { "\n" };
            write!(f, "{start}{label:width$}  {value}")?;
        }
        Ok(())
    }
}
