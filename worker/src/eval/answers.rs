//! Stub until the predictor is there.
use super::EvalContext;
use super::report::Answers;
use crate::comm::Collectives;
use ilm_model::StoppingModel;

pub(super) fn compare(_: &EvalContext<'_>, _: &StoppingModel, _: &mut dyn Collectives) -> anyhow::Result<Answers> {
    Ok(Answers { exact_match: 0.0, token_accuracy: 0.0, inserted_tokens: 0.0 })
}
