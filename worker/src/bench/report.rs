//! What every line of output begins with, and the figures that several kinds of lines share.

use ilm_model::Precision;
use serde::Serialize;

/// The first fields of every line; their names never change.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Common<'a> {
    /// What was measured.
    pub bench: &'a str,
    /// On what.
    pub case: &'a str,
    /// Type of the products: `fp32` or `bf16`.
    pub precision: Precision,
    /// Threads of a rank.
    pub threads: usize,
    /// Processes.
    pub ranks: usize,
}

/// Measured times, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Takes one more.
    pub fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    /// The one in the middle; the upper one of two. 0 if there are none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// The shortest. 0 if there are none.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
    }
}

/// Most memory that this process has had, in MiB (Linux; 0 where it is not told).
pub fn peak_rss_mib() -> f64 {
    status_mib("VmHWM:")
}

/// Memory that this process has, in MiB (Linux; 0 where it is not told).
pub fn current_rss_mib() -> f64 {
    status_mib("VmRSS:")
}

/// Lets [`peak_rss_mib`] start anew from what is in use.
pub fn forget_peak_rss() {
    // Refused in some containers; the peak then is that since the start of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn status_mib(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_minimum_do_not_depend_on_the_order() {
        let samples = Samples(vec![3.0, 1.0, 7.0, 2.0, 5.0]);
        assert_eq!((samples.median(), samples.min()), (3.0, 1.0));
        assert_eq!((Samples::default().median(), Samples::default().min()), (0.0, 0.0));
    }

    #[test]
    fn memory_in_use_and_its_peak_are_told() {
        let before = current_rss_mib();
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        // The system counts in portions, so not to the last page.
        assert!(current_rss_mib() > before + 48.0);
        drop(memory);
        assert!(peak_rss_mib() > before + 48.0);
    }
}
