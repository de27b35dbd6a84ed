//! What can be said of a generated text without a judge.

use std::collections::BTreeMap;

/// Length and variety of one generated text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextScore {
    /// Tokens from the second on.
    pub length: usize,
    /// [`unigram_entropy`] of these, in nats.
    pub entropy: f64,
}

impl TextScore {
    /// Scores the generator's token ids of one text, its special tokens included.
    ///
    /// The first token is left out as in the reference, which takes it for CLS or BOS.
    pub fn new(ids: &[i64]) -> Self {
        let counted = ids.get(1..).unwrap_or(&[]);
        Self { length: counted.len(), entropy: unigram_entropy(counted) }
    }
}

/// Entropy in nats of the tokens' own frequencies, `- sum (c / n) ln (c / n)`; 0 without tokens.
///
/// It is low for text that repeats itself and at most ln n.
pub fn unigram_entropy(tokens: &[i64]) -> f64 {
    // ordered, so that the same tokens always give the same sum
    let mut counts = BTreeMap::new();
    for token in tokens {
        *counts.entry(token).or_insert(0.0) += 1.0;
    }
    let n = tokens.len() as f64;
    // an empty sum is -0, which 0 is added to
    counts.values().map(|count| count / n * (n / count).ln()).sum::<f64>() + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_frequencies() {
        assert_eq!(unigram_entropy(&[]), 0.0);
        assert_eq!(unigram_entropy(&[3, 3, 3]), 0.0);
        assert!((unigram_entropy(&[5, 1, 9, 2]) - 4f64.ln()).abs() < 1e-15);
        let expected = 0.75 * (4f64 / 3.0).ln() + 0.25 * 4f64.ln();
        assert!((unigram_entropy(&[7, 2, 7, 7]) - expected).abs() < 1e-15);
    }

    #[test]
    fn the_first_token_is_not_counted() {
        assert_eq!(TextScore::new(&[]), TextScore { length: 0, entropy: 0.0 });
        assert_eq!(TextScore::new(&[1]), TextScore { length: 0, entropy: 0.0 });
        let score = TextScore::new(&[1, 4, 5]);
        assert_eq!(score.length, 2);
        assert!((score.entropy - 2f64.ln()).abs() < 1e-15);
    }
}
