//! Learning-rate schedules as pure functions of the number of finished steps.

use std::f64::consts::PI;

use crate::config::{LrSchedulerConfig, Schedule};

/// The rate of the step after `done` finished ones (so of the first step for 0).
pub fn learning_rate(base: f64, config: &LrSchedulerConfig, done: u64, max_steps: u64) -> f64 {
    let warmup = warmup_steps(config, max_steps);
    let (s, w, t) = (done as f64, warmup as f64, max_steps as f64);
    let warming = (done < warmup).then(|| s / w.max(1.0));
    let progress = (s - w) / (t - w).max(1.0);
    base * match config.name {
        Schedule::Constant => 1.0,
        Schedule::ConstantWithWarmup => warming.unwrap_or(1.0),
        Schedule::Linear => warming.unwrap_or_else(|| ((t - s) / (t - w).max(1.0)).max(0.0)),
        Schedule::Cosine => {
            let wave = 0.5 * (1.0 + (2.0 * PI * config.num_cycles * progress).cos());
            warming.unwrap_or(wave.max(0.0))
        }
    }
}

/// A number wins over a fraction of all steps.
fn warmup_steps(config: &LrSchedulerConfig, max_steps: u64) -> u64 {
    match (config.num_warmup_steps, config.fraction_warmup_steps) {
        (Some(steps), _) => steps,
        (None, Some(fraction)) => (max_steps as f64 * fraction) as u64,
        (None, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(serde::Deserialize)]
    struct Case {
        args: Args,
        base_lr: f64,
        lr: Vec<f64>,
    }

    #[derive(serde::Deserialize)]
    struct Args {
        #[serde(flatten)]
        schedule: LrSchedulerConfigArgs,
        num_training_steps: u64,
    }

    #[derive(serde::Deserialize)]
    struct LrSchedulerConfigArgs {
        name: Schedule,
        num_warmup_steps: Option<u64>,
        fraction_warmup_steps: Option<f64>,
        num_cycles: Option<f64>,
    }

    #[test]
    fn golden_lr_schedules() {
        let file = std::fs::read_to_string(test_support::golden_dir().join("lr_schedules.json")).unwrap();
        let cases: BTreeMap<String, Case> = serde_json::from_str(&file).unwrap();
        assert!(!cases.is_empty());
        for (case_name, case) in cases {
            let args = case.args.schedule;
            let config = LrSchedulerConfig {
                name: args.name,
                num_warmup_steps: args.num_warmup_steps,
                fraction_warmup_steps: args.fraction_warmup_steps,
                num_cycles: args.num_cycles.unwrap_or(0.5),
            };
            for (done, &expected) in case.lr.iter().enumerate() {
                let found = learning_rate(case.base_lr, &config, done as u64, case.args.num_training_steps);
                assert!((found - expected).abs() < 1e-12, "{case_name} step {done}: {found} {expected}");
            }
        }
    }
}
