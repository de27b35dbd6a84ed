//! Generative perplexity: how likely a judge, another language model, finds generated text.
//!
//! Pure arithmetic on what the judge says of each token, in f64. The reference sums bf16 numbers, which leaves about 0.4 % of
//! uncertainty in a total.

use serde::{Deserialize, Serialize};

use super::mean::Mean;
use super::text::{TextScore, unigram_entropy};
use crate::error::{Error, Result};

/// What a judge finds of one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct JudgeScore {
    /// Negative log likelihood of all judged tokens, in nats.
    pub total_nll: f64,
    /// Judged tokens: all of the judge's but the first.
    pub length: usize,
    /// `total_nll` per judged token.
    pub nll: f64,
    /// exp of `nll`.
    pub perplexity: f64,
    /// [`unigram_entropy`] of the judged tokens, in nats.
    pub entropy: f64,
}

impl JudgeScore {
    /// Scores a text from its `tokens` under the judge's tokenizer (no special ones added) and the judge's log likelihood, in
    /// nats, of each token from the second on given those before it. None for a text of fewer than two tokens: nothing in it is
    /// judged.
    ///
    /// # Errors
    /// There is not one log likelihood for each token from the second on.
    pub fn new(tokens: &[i64], log_likelihoods: &[f64]) -> Result<Option<Self>> {
        let judged = tokens.get(1..).unwrap_or(&[]);
        Error::unless_sized("log likelihoods of a judge", judged.len(), log_likelihoods.len())?;
        if judged.is_empty() {
            return Ok(None);
        }
        let total_nll = -log_likelihoods.iter().sum::<f64>();
        let nll = total_nll / judged.len() as f64;
        Ok(Some(Self {
            total_nll,
            length: judged.len(),
            nll,
            perplexity: nll.exp(),
            entropy: unigram_entropy(judged),
        }))
    }
}

/// The scores of many texts: plain means over texts, which the fields hold, and the perplexity of all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerativePerplexity {
    /// Of [`TextScore::length`], over all texts whose generator's tokens are known.
    pub length: Mean,
    /// Of [`TextScore::entropy`], over the same.
    pub entropy: Mean,
    /// Of [`JudgeScore::total_nll`], over the judged texts.
    pub judge_total_nll: Mean,
    /// Of [`JudgeScore::length`], over the judged texts.
    pub judge_length: Mean,
    /// Of [`JudgeScore::nll`], over the judged texts.
    pub judge_nll: Mean,
    /// Of [`JudgeScore::perplexity`], over the judged texts.
    pub judge_perplexity: Mean,
    /// Of [`JudgeScore::entropy`], over the judged texts.
    pub judge_entropy: Mean,
}

impl GenerativePerplexity {
    /// Takes in one text, by what its generator's tokens say of it (if they are known) and its judge (if it was long enough).
    pub fn add(&mut self, text: Option<&TextScore>, judged: Option<&JudgeScore>) {
        if let Some(text) = text {
            self.length.add(text.length as f64, 1.0);
            self.entropy.add(text.entropy, 1.0);
        }
        let Some(judged) = judged else { return };
        self.judge_total_nll.add(judged.total_nll, 1.0);
        self.judge_length.add(judged.length as f64, 1.0);
        self.judge_nll.add(judged.nll, 1.0);
        self.judge_perplexity.add(judged.perplexity, 1.0);
        self.judge_entropy.add(judged.entropy, 1.0);
    }

    /// Takes in what was collected elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.length.merge(other.length);
        self.entropy.merge(other.entropy);
        self.judge_total_nll.merge(other.judge_total_nll);
        self.judge_length.merge(other.judge_length);
        self.judge_nll.merge(other.judge_nll);
        self.judge_perplexity.merge(other.judge_perplexity);
        self.judge_entropy.merge(other.judge_entropy);
    }

    /// exp of the negative log likelihood per judged token of all texts, in which long texts weigh more; none without any.
    pub fn total_perplexity(&self) -> Option<f64> {
        (self.judge_length.sum > 0.0).then(|| (self.judge_total_nll.sum / self.judge_length.sum).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(tokens: &[i64], nll: f64) -> JudgeScore {
        JudgeScore::new(tokens, &vec![-nll; tokens.len() - 1]).unwrap().unwrap()
    }

    #[test]
    fn texts_without_a_second_token_are_not_judged() {
        assert_eq!(JudgeScore::new(&[], &[]).unwrap(), None);
        assert_eq!(JudgeScore::new(&[3], &[]).unwrap(), None);
        let message = JudgeScore::new(&[3, 4, 5], &[-1.0]).unwrap_err().to_string();
        assert_eq!(message, "log likelihoods of a judge do not fit: 2 are needed but 1 were given");
    }

    #[test]
    fn long_texts_weigh_more_in_the_total_only() {
        let mut all = GenerativePerplexity::default();
        assert_eq!(all.total_perplexity(), None);
        let text = TextScore { length: 4, entropy: 1.0 };
        all.add(Some(&text), Some(&judged(&[1, 2], 3.0)));
        let mut rest = GenerativePerplexity::default();
        rest.add(Some(&text), Some(&judged(&[1, 2, 3, 4], 1.0)));
        rest.add(Some(&TextScore { length: 0, entropy: 0.0 }), None);
        rest.add(None, None);
        all.merge(&rest);
        assert_eq!(all.judge_nll.mean(), Some(2.0));
        assert_eq!(all.total_perplexity(), Some(1.5f64.exp()));
        assert_eq!((all.length.weight, all.judge_length.weight), (3.0, 2.0));
        assert_eq!(all.entropy.mean(), Some(2.0 / 3.0));
    }

    #[test]
    fn small_costs_add_up_beside_large_ones() {
        // bf16 would hold 256 and lose every later 0.1
        let mut costs = vec![-256.0];
        costs.resize(1001, -0.1);
        let score = JudgeScore::new(&[7; 1002], &costs).unwrap().unwrap();
        assert!((score.total_nll - 356.0).abs() < 1e-9);
        assert_eq!(score.entropy, 0.0);
    }
}
