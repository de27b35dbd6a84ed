//! How far a job on data is, as a bar on a terminal; nothing otherwise.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use data_pipeline::{Amounts, Progress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::signals::StopRequest;

/// Shows the parts of a job one after the other, and ends it when a signal asks.
#[derive(Debug)]
pub struct JobProgress {
    bar: Option<ProgressBar>,
    files: AtomicU64,
    tokens: AtomicU64,
    stop: StopRequest,
}

impl JobProgress {
    /// Nothing is drawn before the first part begins.
    pub fn new(stop: StopRequest) -> Self {
        let on_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = on_terminal.then(|| {
            let template = "{prefix} {bar:30} {pos}/{len}  {per_sec}  {msg}  eta {eta}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, files: AtomicU64::new(0), tokens: AtomicU64::new(0), stop }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for JobProgress {
    fn begin(&self, part: &str, rows: u64) {
        self.files.store(0, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(rows);
            bar.set_prefix(part.to_owned());
            bar.set_message("");
        }
    }

    fn advance(&self, more: Amounts) {
        let files = self.files.fetch_add(more.files, Ordering::Relaxed) + more.files;
        let tokens = self.tokens.fetch_add(more.tokens, Ordering::Relaxed) + more.tokens;
        if let Some(bar) = &self.bar {
            bar.inc(more.rows);
            bar.set_message(format!("{files} files, {tokens} tokens"));
        }
    }

    fn should_stop(&self) -> bool {
        self.stop.is_set()
    }
}
