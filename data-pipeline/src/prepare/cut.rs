//! Long texts in pieces: a cut lies before a new word, and a piece encodes to its own ids again.

use std::sync::Arc;

use crate::{error::Result, tokenizer::Tokenizer};

/// Cuts that are tried before one is taken that cannot be checked.
const TRIES: usize = 32;

/// Cuts lists of ids.
#[derive(Debug)]
pub(super) struct Cutter {
    tokenizer: Arc<Tokenizer>,
    max_tokens: usize,
    /// By id: whether its text is white space and a letter when other text is before it.
    begins_word: Vec<bool>,
}

impl Cutter {
    /// `max_tokens`: ids of a piece, at least 1.
    pub fn new(tokenizer: &Arc<Tokenizer>, max_tokens: usize) -> Result<Self> {
        let before = tokenizer.encode("a")?;
        let length = tokenizer.decode(&before, false).len();
        let begins_word = |id: u32| {
            let text = tokenizer.decode(&[&before[..], &[id]].concat(), false);
            let mut text = text.get(length..).unwrap_or_default().chars();
            text.next().is_some_and(char::is_whitespace) && text.next().is_some_and(char::is_alphabetic)
        };
        let begins_word = (0..tokenizer.vocab_size() as u32).map(begins_word).collect();
        Ok(Self { tokenizer: tokenizer.clone(), max_tokens: max_tokens.max(1), begins_word })
    }

    /// The ids in pieces; together they are all ids.
    pub fn pieces<'a>(&self, ids: &'a [u32]) -> Vec<&'a [u32]> {
        let (mut pieces, mut rest) = (Vec::new(), ids);
        while rest.len() > self.max_tokens {
            let (piece, after) = rest.split_at(self.end(rest));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        pieces
    }

    /// Where the first piece of more than `max_tokens` ids ends: at the last new word, or where a word can be cut at all.
    fn end(&self, ids: &[u32]) -> usize {
        let ends = || (1..=self.max_tokens).rev();
        let words = || ends().filter(|&end| self.begins_word.get(ids[end] as usize) == Some(&true));
        let sound = words().take(TRIES).chain(ends().take(TRIES)).find(|&end| self.is_sound(&ids[..end]));
        sound.or_else(|| words().next()).unwrap_or(self.max_tokens)
    }

    fn is_sound(&self, piece: &[u32]) -> bool {
        self.tokenizer.encode(&self.tokenizer.decode(piece, false)).is_ok_and(|again| again == piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SpecialTokenNames;

    fn tokenizer(name: &str) -> Arc<Tokenizer> {
        let path = test_support::data_dir().join("tokenizers").join(name).join("tokenizer.json");
        Arc::new(Tokenizer::open(&path, &SpecialTokenNames::default()).unwrap())
    }

    fn texts(name: &str, max_tokens: usize, text: &str) -> Vec<String> {
        let tokenizer = tokenizer(name);
        let ids = tokenizer.encode(text).unwrap();
        let cutter = Cutter::new(&tokenizer, max_tokens).unwrap();
        let pieces = cutter.pieces(&ids);
        assert_eq!(pieces.concat(), ids);
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= max_tokens));
        pieces.into_iter().map(|piece| tokenizer.decode(piece, false)).collect()
    }

    #[test]
    fn cuts_lie_before_words() {
        assert_eq!(texts("gpt2", 4, "so it was, unbelievably"), ["so it was,", " unbelievably"]);
        assert_eq!(
            texts("bert-base-uncased", 6, "so it was so unbelievably late"),
            ["so it was so", "unbelievably late"]
        );
    }

    #[test]
    fn a_giant_word_is_cut_between_characters() {
        let giant = "\u{1f680}\u{10348}\u{4e2d}".repeat(50);
        for max_tokens in 4..12 {
            let pieces = texts("gpt2", max_tokens, &giant);
            assert_eq!(pieces.concat(), giant, "no piece has half a character");
        }
    }
}
