//! One generated text as a line of the output file, and the figures of all of them.

use std::fmt;
use std::time::Duration;

use data_pipeline::Tokenizer;
use ilm_model::metrics::{Mean, TextScore};
use ilm_model::{Prediction, SpecialIds};
use serde::{Deserialize, Serialize};

use super::requests::Request;

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the request, from 0: of the text, or of the line in the file.
    pub id: u64,
    /// The text without special tokens.
    pub text: String,
    /// The text with them.
    pub text_with_spl_tokens: String,
    /// All tokens in text order.
    pub ids: Vec<i64>,
    /// Tokens that were inserted, padding and masks left out.
    pub inserted: usize,
    /// What was inserted in each gap, for texts with gaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fillings: Option<Vec<String>>,
    /// (text, 1.0, step) of the start and of every step, if asked for; the reference's form, whose second entry is constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<(String, f64, usize)>>,
}

impl Record {
    pub(super) fn new(
        request: &Request,
        prediction: &Prediction,
        tokenizer: &Tokenizer,
        special: SpecialIds,
    ) -> Self {
        let decode = |ids: &[i64], skip_special| tokenizer.decode(&to_ids(ids), skip_special);
        let prompt = &request.prompt;
        let fillings = request.infills.then(|| {
            let open = prompt.closed.iter().flatten().map(|closed| !closed);
            let filled = prediction.fillings(prompt, special);
            filled.iter().zip(open).filter(|(_, open)| *open).map(|(ids, _)| decode(ids, true)).collect()
        });
        let entries = &prediction.history;
        let history = || entries.iter().map(|entry| (decode(&entry.tokens, true), 1.0, entry.step)).collect();
        Self {
            id: prediction.id,
            text: decode(&prediction.tokens, true),
            text_with_spl_tokens: decode(&prediction.tokens, false),
            inserted: prediction.tokens.len() - prompt.tokens.len(),
            fillings,
            history: (!entries.is_empty()).then(history),
            ids: prediction.tokens.clone(),
        }
    }
}

/// Ids outside u32 cannot occur: a model's vocabulary is bounded far below.
fn to_ids(ids: &[i64]) -> Vec<u32> {
    ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
}

/// Means over all generated texts; length and entropy as in [`TextScore`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    inserted: Mean,
    length: Mean,
    entropy: Mean,
    rate: f64,
}

impl Summary {
    /// Figures of `records`, in which `new` tokens were inserted within `elapsed`, the others before.
    pub fn of(records: &[Record], new: usize, elapsed: Duration) -> Self {
        let rate = new as f64 / elapsed.as_secs_f64().max(1e-9);
        let mut summary =
            Self { inserted: Mean::default(), length: Mean::default(), entropy: Mean::default(), rate };
        for record in records {
            summary.inserted.add(record.inserted as f64, 1.0);
            let text = TextScore::new(&record.ids);
            summary.length.add(text.length as f64, 1.0);
            summary.entropy.add(text.entropy, 1.0);
        }
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = |mean: Mean| mean.mean().unwrap_or(0.0);
        write!(
            f,
            "{} texts, on average {:.1} tokens of which {:.1} inserted, unigram entropy {:.3} nats; {:.1} insertions/s",
            self.inserted.weight,
            mean(self.length),
            mean(self.inserted),
            mean(self.entropy),
            self.rate
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ids: &[i64], inserted: usize) -> Record {
        Record {
            id: 0,
            text: String::new(),
            text_with_spl_tokens: String::new(),
            ids: ids.to_vec(),
            inserted,
            fillings: None,
            history: None,
        }
    }

    #[test]
    fn length_and_entropy_leave_out_the_first_token() {
        let records = [record(&[1, 4, 7, 7], 2), record(&[1, 4], 0)];
        let summary = Summary::of(&records, 2, Duration::from_secs(1));
        assert_eq!(
            summary.to_string(),
            "2 texts, on average 2.0 tokens of which 1.0 inserted, unigram entropy 0.318 nats; 2.0 insertions/s"
        );
    }
}
