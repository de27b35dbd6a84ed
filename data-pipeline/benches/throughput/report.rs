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
            let (mut rates, mut cpu_rates) = (Vec::new(), Vec::new());
            for run in 0..=self.count {
                let start = Instant::now();
                let (tokens, busy) = on_threads(threads, |thread| work(run, thread, threads))?;
                if run > 0 {
                    rates.push(tokens as f64 / start.elapsed().as_secs_f64());
                    cpu_rates.push(tokens as f64 / busy);
                }
            }
            let (rate, spread) = median_and_spread(&mut rates);
            let (cpu_rate, _) = median_and_spread(&mut cpu_rates);
            let line = serde_json::json!({
                "bench": bench, "case": case, "threads": threads, "tokens_per_s": rate.round(),
                "tokens_per_cpu_s": cpu_rate.round(), "median_of": self.count, "spread": spread,
            });
            println!("{line}");
        }
        Ok(())
    }
}

fn median_and_spread(rates: &mut [f64]) -> (f64, f64) {
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let spread = (rates[rates.len() - 1] - rates[0]) / median;
    (median, (spread * 1000.0).round() / 1000.0)
}

/// Runs `work` on every thread; adds up what they return, and the seconds they were on a processor.
pub fn on_threads(threads: usize, work: impl Fn(usize) -> Outcome<u64> + Sync) -> Outcome<(u64, f64)> {
    let timed = |thread| work(thread).and_then(|tokens| Ok((tokens, busy_seconds()?)));
    std::thread::scope(|scope| {
        let timed = &timed;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || timed(thread))).collect();
        let mut sums = (0, 0.0);
        for handle in handles {
            let (tokens, busy) = handle.join().map_err(|_| "a thread panicked")??;
            sums = (sums.0 + tokens, sums.1 + busy);
        }
        Ok(sums)
    })
}

/// Processor time of this thread since it began.
fn busy_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = stat.split(' ').next().ok_or("no schedstat")?.parse()?;
    Ok(nanoseconds / 1e9)
}
