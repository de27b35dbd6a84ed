//! What a judge found of a text, as the reference names its figures, and the figures of all texts.

use std::fmt;

use ilm_model::Precision;
use ilm_model::metrics::{GenerativePerplexity, JudgeScore};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::texts::Text;

/// What a judge found of a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// None of a text with fewer than two of the judge's tokens.
    pub score: Option<JudgeScore>,
}

impl Verdict {
    /// The text's own line with the figures of this judge added; those of other judges stay.
    ///
    /// # Errors
    /// None of a line that was read.
    pub fn line(&self, text: &Text, judge: &str) -> serde_json::Result<Map<String, Value>> {
        let mut line = text.fields()?;
        let mut put = |name: String, value: Value| line.insert(name, value);
        if let Some(score) = text.score {
            put("length".to_owned(), json!(score.length));
            put("entropy".to_owned(), json!(score.entropy));
        }
        if let Some(score) = self.score {
            put(format!("total_nll_{judge}"), json!(score.total_nll));
            put(format!("total_length_{judge}"), json!(score.length));
            put(format!("nll_{judge}"), json!(score.nll));
            put(format!("perplexity_{judge}"), json!(score.perplexity));
            put(format!("entropy_{judge}"), json!(score.entropy));
        }
        Ok(line)
    }
}

/// The figures of all texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    judge: String,
    precision: Precision,
    texts: usize,
    cut: usize,
    figures: GenerativePerplexity,
}

impl Summary {
    /// Of all texts and their verdicts.
    pub fn of<'a>(
        judge: &str,
        precision: Precision,
        verdicts: impl Iterator<Item = (&'a Text, &'a Verdict)>,
    ) -> Self {
        let figures = GenerativePerplexity::default();
        let mut summary = Self { judge: judge.to_owned(), precision, texts: 0, cut: 0, figures };
        for (text, verdict) in verdicts {
            summary.texts += 1;
            summary.cut += usize::from(text.is_cut);
            summary.figures.add(text.score.as_ref(), verdict.score.as_ref());
        }
        summary
    }

    /// As it is written.
    pub fn to_json(&self) -> Value {
        let Self { judge, precision, texts, cut, figures } = self;
        let mut json = json!({
            "judge": judge,
            "precision": precision,
            "texts": texts,
            "judged_texts": figures.judge_nll.weight as u64,
            "cut_texts": cut,
        });
        let named = [
            ("length".to_owned(), figures.length.mean()),
            ("entropy".to_owned(), figures.entropy.mean()),
            (format!("length_{judge}"), figures.judge_length.mean()),
            (format!("nll_{judge}"), figures.judge_nll.mean()),
            (format!("perplexity_{judge}"), figures.judge_perplexity.mean()),
            (format!("entropy_{judge}"), figures.judge_entropy.mean()),
            (format!("total_perplexity_{judge}"), figures.total_perplexity()),
        ];
        for (name, value) in named {
            json[name] = json!(value);
        }
        json
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { judge, texts, cut, figures, .. } = self;
        write!(f, "{texts} texts, {} judged by {judge}", figures.judge_nll.weight)?;
        let means =
            [figures.judge_nll, figures.judge_perplexity, figures.judge_entropy].map(|mean| mean.mean());
        if let ([Some(nll), Some(perplexity), Some(entropy)], Some(total)) =
            (means, figures.total_perplexity())
        {
            write!(
                f,
                ": nll {nll:.4} nats a token, perplexity {perplexity:.3} (of all tokens together {total:.3}), unigram entropy \
                 {entropy:.3} nats"
            )?;
        }
        if *cut > 0 {
            write!(f, "; {cut} are longer than the judge can read, and judged by their beginning")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_all_too_short_have_no_figures() {
        let (text, verdict) = (Text { is_cut: true, ..Text::default() }, Verdict { score: None });
        let summary = Summary::of("gpt2", Precision::Fp32, std::iter::once((&text, &verdict)));
        let expected =
            "1 texts, 0 judged by gpt2; 1 are longer than the judge can read, and judged by their beginning";
        assert_eq!(summary.to_string(), expected);
        let json = summary.to_json();
        assert_eq!((&json["judged_texts"], &json["nll_gpt2"]), (&json!(0), &Value::Null));
    }
}
