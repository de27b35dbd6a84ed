//! Section `predictor` of the configuration.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Section `predictor`: insertion until the head on CLS is content, or until a bound where there is no head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictorConfig {
    /// Most insertions per row.
    pub max_steps: usize,
    /// Rows of this many tokens (CLS, BOS and prompt counted) are not extended; none: the model's.
    pub max_length: Option<usize>,
    /// A row goes on while the head's probability of class 0, complete, is below this; none means 0.5 for length models and 0.9
    /// for others.
    pub stopping_threshold: Option<f64>,
    /// Divides the head's logits.
    pub stopping_temperature: f64,
    /// How the token is drawn (or position and token at once, if the second method is none).
    pub sampling_method: SamplingMethod,
    /// k of the token's top-k.
    pub top: i64,
    /// p of the token's top-p.
    pub p: f64,
    /// How the position is drawn.
    pub second_sampling_method: Option<SamplingMethod>,
    /// k of the position's top-k.
    pub second_top: i64,
    /// p of the position's top-p.
    pub second_p: f64,
    /// True forbids insertions between prompt tokens.
    pub protect_prompt: bool,
    /// True inserts at least one token.
    pub force_predict_first_step: bool,
    /// Strings of the tokens that are never inserted; none means CLS, BOS, EOS, PAD and MASK.
    pub tokens_to_suppress: Option<Vec<String>>,
    /// True adds up the scores of each position's tokens in f64, where the second method draws the position. Tokens are
    /// always drawn from f32 scores; the reference's option makes these f64 too.
    pub use_high_precision: bool,
    /// True keeps the text after every insertion beside the final one.
    pub return_history: bool,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            max_steps: 128,
            max_length: None,
            stopping_threshold: None,
            stopping_temperature: 1.0,
            sampling_method: SamplingMethod::Sample,
            top: 1000,
            p: 0.9,
            second_sampling_method: None,
            second_top: 1000,
            second_p: 0.9,
            protect_prompt: false,
            force_predict_first_step: false,
            tokens_to_suppress: None,
            use_high_precision: false,
            return_history: false,
        }
    }
}

impl PredictorConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// One sentence with the key, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        if self.max_steps == 0 {
            return fail("predictor.max_steps = 0 must be at least 1".to_owned());
        }
        if self.max_length == Some(0) {
            return fail("predictor.max_length = 0 must be at least 1".to_owned());
        }
        if let Some(value) = self.stopping_threshold.filter(|value| !(0.0..=1.0).contains(value)) {
            return fail(format!("predictor.stopping_threshold = {value} must lie in [0, 1]"));
        }
        if !(self.stopping_temperature > 0.0 && self.stopping_temperature.is_finite()) {
            let value = self.stopping_temperature;
            return fail(format!("predictor.stopping_temperature = {value} must be above 0"));
        }
        for (key, value) in [("top", self.top), ("second_top", self.second_top)] {
            if value < 1 {
                return fail(format!("predictor.{key} = {value} must be at least 1"));
            }
        }
        for (key, value) in [("p", self.p), ("second_p", self.second_p)] {
            if !(value > 0.0 && value <= 1.0) {
                return fail(format!("predictor.{key} = {value} must be above 0 and at most 1"));
            }
        }
        Ok(())
    }
}

/// How one of several scored choices is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplingMethod {
    /// From the softmax.
    Sample,
    /// From the softmax over the k largest.
    SampleTopK,
    /// From the softmax over the largest whose probabilities sum to at most p: the reference's rule, which leaves out the
    /// entry that crosses p.
    SampleTopP,
    /// From the softmax over the fewest largest whose probabilities sum to at least p: the usual nucleus rule.
    SampleNucleus,
}
