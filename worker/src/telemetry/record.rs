//! The numbers of one step, as printed and as written to `metrics.jsonl`.

use std::fmt;

use serde::Serialize;

/// Global figures of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// Finished optimizer steps.
    pub step: u64,
    /// Passes over the training split, as a fraction.
    pub epoch: f64,
    /// Mean loss per example of the global batch.
    pub loss: f64,
    /// Its token part.
    pub token_ce: f64,
    /// Its stopping part.
    pub stop_loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Examples per second over all ranks, of this step.
    pub examples_per_s: f64,
    /// Visible tokens (the model's input positions) per second over all ranks, of this step.
    pub tokens_per_s: f64,
    /// Input positions that hold a token, divided by the positions that were computed.
    pub useful_positions: f64,
    /// Longest time that a rank waited for data, in seconds.
    pub data_wait_s: f64,
    /// Steps that were ready to be taken, on the rank with the fewest.
    pub data_ready_steps: u64,
    /// Rows of this step that were left out because they cannot be used.
    pub skipped_rows: u64,
    /// Whether the parameters were left as they were (see `skipped.jsonl`).
    pub update_skipped: bool,
    /// How long the rank that waited least stood still for gradients and parameters of others, in seconds: the gradients of this
    /// step and the parameters after the step before. This is the exchange itself.
    pub comm_exposed_s: f64,
    /// The same of the rank that waited most: what it has beyond `comm_exposed_s` it waited for slower ranks.
    pub rank_wait_s: f64,
    /// Duration of the step in seconds.
    pub step_s: f64,
    /// Seconds that training stood still for checkpoints since the record before; not part of `step_s`.
    pub checkpoint_stall_s: f64,
    /// Seconds to the last step at the recent pace.
    pub eta_s: f64,
}

impl fmt::Display for StepRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "loss {:.4} (token {:.4} stop {:.4})  |g| {:.3}  lr {:.2e}  {:.0} ex/s  {:.0} tok/s  useful {:.0}%  \
             data wait {:.1}%  eta {}{}",
            self.loss,
            self.token_ce,
            self.stop_loss,
            self.grad_norm,
            self.lr,
            self.examples_per_s,
            self.tokens_per_s,
            100.0 * self.useful_positions,
            100.0 * self.data_wait_s / self.step_s.max(f64::MIN_POSITIVE),
            duration(self.eta_s),
            if self.update_skipped { "  (update skipped)" } else { "" },
        )
    }
}

/// Hours, minutes and seconds.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}h{minutes:02}m") } else { format!("{minutes}m{seconds:02}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(0.2), "0m00s");
        assert_eq!(duration(61.0), "1m01s");
        assert_eq!(duration(7322.0), "2h02m");
    }
}
