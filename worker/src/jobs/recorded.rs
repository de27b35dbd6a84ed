//! What a run recorded of its steps, and how that is compared with steps that were computed again.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

use crate::run_dir::{RunDir, RunDirError};
use crate::train::{Bits, StepDigest};

/// Losses of other numbers of ranks may differ by this, relative to the recorded one: sums are taken in another order.
const ROUNDING: f64 = 1e-5;

/// The steps in a run's `digest.jsonl`, by number; lines that a crash cut off are passed over.
///
/// # Errors
/// A file that cannot be read. None at all is an empty record.
pub(super) fn read(run_dir: &RunDir) -> Result<BTreeMap<u64, StepDigest>, RunDirError> {
    let path = run_dir.digest();
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.map_err(RunDirError::new("read", &path))?,
    };
    let steps = text.lines().filter_map(|line| serde_json::from_str::<StepDigest>(line).ok());
    Ok(steps.map(|step| (step.step, step)).collect())
}

/// How exactly a step can be expected to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exactness {
    /// On as many ranks: every bit.
    Bits,
    /// On another number: the samples, and losses up to rounding.
    Rounding,
    /// The same with dropout, which every rank draws for itself: the samples.
    Samples,
}

impl Exactness {
    /// For a step that was recorded on so many ranks and computed again on so many.
    pub(super) fn of(recorded: u64, now: u64, dropout: f64) -> Self {
        match (recorded == now, dropout > 0.0) {
            (true, _) => Self::Bits,
            (false, false) => Self::Rounding,
            (false, true) => Self::Samples,
        }
    }

    /// The first figure of a step that is not as recorded, in words.
    pub(super) fn difference(self, recorded: &StepDigest, found: &StepDigest) -> Option<String> {
        let at = |what: &str, before: String, now: String| {
            Some(format!("step {}: {what} was {before} and is {now} now", recorded.step))
        };
        let bits = |bits: Bits| format!("{:016x}", bits.0);
        if recorded.position != found.position {
            return at("the data position", recorded.position.to_string(), found.position.to_string());
        }
        if recorded.samples != found.samples {
            return at("the hash of the samples", bits(recorded.samples), bits(found.samples));
        }
        if self == Self::Samples {
            return None;
        }
        let figure = |bits: Bits| format!("{} ({:016x})", bits.figure(), bits.0);
        let [before, now] = [recorded.loss.figure(), found.loss.figure()];
        let is_close = (before - now).abs() <= ROUNDING * before.abs() || recorded.loss == found.loss;
        if recorded.loss != found.loss && !(self == Self::Rounding && is_close) {
            return at("the loss", figure(recorded.loss), figure(found.loss));
        }
        if self == Self::Rounding {
            return None;
        }
        if recorded.grad_norm != found.grad_norm {
            return at("the gradient norm", figure(recorded.grad_norm), figure(found.grad_norm));
        }
        if recorded.skipped != found.skipped {
            let reason =
                |step: &StepDigest| step.skipped.map_or("an update", |skip| skip.reason()).to_owned();
            return at("the outcome", reason(recorded), reason(found));
        }
        match (recorded.parameters, found.parameters) {
            (Some(before), Some(now)) if before != now => {
                at("the checksum of the parameters", bits(before), bits(now))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> StepDigest {
        StepDigest {
            step: 7,
            position: 48,
            ranks: 2,
            samples: Bits(5),
            loss: Bits::of(2.0),
            grad_norm: Bits::of(1.0),
            skipped: None,
            parameters: Some(Bits(9)),
            since: 0,
            digest: Bits(1),
        }
    }

    #[test]
    fn bits_are_compared_where_they_can_repeat_and_rounding_is_forgiven_elsewhere() {
        let close = StepDigest { loss: Bits::of(2.0 + 1e-6), grad_norm: Bits::of(3.0), ..step() };
        let differs = |how: Exactness, found: &StepDigest| how.difference(&step(), found).unwrap_or_default();
        assert!(
            differs(Exactness::Bits, &close).starts_with("step 7: the loss was 2 (4000000000000000) and is")
        );
        assert_eq!(differs(Exactness::Rounding, &close), "");
        let far = StepDigest { loss: Bits::of(2.1), ..step() };
        assert!(differs(Exactness::Rounding, &far).contains("the loss"));
        assert_eq!(differs(Exactness::Samples, &far), "");
        for how in [Exactness::Bits, Exactness::Rounding, Exactness::Samples] {
            assert_eq!(differs(how, &step()), "");
            assert!(differs(how, &StepDigest { samples: Bits(6), ..step() }).contains("samples"));
        }
        let others = [
            (StepDigest { position: 56, ..step() }, "position"),
            (StepDigest { grad_norm: Bits::of(1.5), ..step() }, "gradient norm"),
            (StepDigest { parameters: Some(Bits(8)), ..step() }, "parameters"),
            (StepDigest { skipped: Some(crate::train::Skip::LossSpike), ..step() }, "outcome"),
        ];
        for (found, what) in others {
            assert!(differs(Exactness::Bits, &found).contains(what), "{what}");
        }
        let not_checked = StepDigest { parameters: None, ..step() };
        assert_eq!(differs(Exactness::Bits, &not_checked), "");
        let lost = StepDigest { loss: Bits::of(f64::NAN), ..step() };
        assert!(differs(Exactness::Rounding, &lost).contains("the loss"));
        assert_eq!(Exactness::Rounding.difference(&lost, &lost), None);
    }

    #[test]
    fn only_as_many_ranks_repeat_bits() {
        assert_eq!(Exactness::of(2, 2, 0.1), Exactness::Bits);
        assert_eq!(Exactness::of(2, 3, 0.0), Exactness::Rounding);
        assert_eq!(Exactness::of(2, 1, 0.1), Exactness::Samples);
    }
}
