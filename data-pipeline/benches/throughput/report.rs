//! One measurement: several runs on several threads, their median and spread, one JSON line.

use std::{error::Error, time::Instant};

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What every measurement is repeated with.
pub struct Runs {
    /// Numbers of threads to try.
    pub threads: Vec<usize>,
    /// Runs the median is taken of.
    pub count: usize,
}

impl Runs {
    /// Measures `work(run, thread, threads)`, which returns how many source tokens it handled; run 0 only warms up.
    pub fn measure(
        &self,
        bench: &str,
        case: &str,
        work: impl Fn(usize, usize, usize) -> Outcome<u64> + Sync,
    ) -> Outcome<()> {
        for &threads in &self.threads {
            let mut rates = Vec::new();
            for run in 0..=self.count {
                let start = Instant::now();
                let tokens = on_threads(threads, |thread| work(run, thread, threads))?;
                if run > 0 {
                    rates.push(tokens as f64 / start.elapsed().as_secs_f64());
                }
            }
            rates.sort_by(f64::total_cmp);
            let median = rates[rates.len() / 2];
            let spread = (rates[rates.len() - 1] - rates[0]) / median;
            let line = serde_json::json!({
                "bench": bench, "case": case, "threads": threads, "tokens_per_s": median.round(),
                "median_of": self.count, "spread": (spread * 1000.0).round() / 1000.0,
            });
            println!("{line}");
        }
        Ok(())
    }
}

/// Runs `work` on every thread and adds up what they return.
pub fn on_threads(threads: usize, work: impl Fn(usize) -> Outcome<u64> + Sync) -> Outcome<u64> {
    std::thread::scope(|scope| {
        let work = &work;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Outcome<u64>>| {
            handle.join().unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        handles.into_iter().map(join).sum()
    })
}
