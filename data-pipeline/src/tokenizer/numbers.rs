//! Numbers parted by single spaces: seven special tokens, then "0", "1", ...

use super::SpecialTokens;
use crate::error::{Error, Result};

const SPECIAL_STRINGS: [&str; 7] = ["[PAD]", "[CLS]", "[MASK]", "[EOS]", "[BOS]", "[SEP]", "[UNK]"];

/// The ids of the strings above.
pub(super) const SPECIAL: SpecialTokens =
    SpecialTokens { pad: 0, cls: 1, mask: 2, eos: 3, bos: 4, sep: 5, unk: 6 };

/// Id of the number 0; the number k has id `FIRST_NUMBER + k`.
pub(crate) const FIRST_NUMBER: u32 = SPECIAL_STRINGS.len() as u32;

/// The tokenizer of the numbers `0..count`.
#[derive(Debug, Clone)]
pub struct NumbersTokenizer {
    count: usize,
}

impl NumbersTokenizer {
    /// For the numbers `0..count`.
    pub fn new(count: usize) -> Self {
        Self { count }
    }

    /// Special tokens and numbers.
    pub fn vocab_size(&self) -> usize {
        self.count + SPECIAL_STRINGS.len()
    }

    /// Splits on single spaces and skips empty pieces; unknown pieces are refused, never replaced.
    ///
    /// # Errors
    /// [`Error::Encode`] names the unknown piece.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        text.split(' ').filter(|piece| !piece.is_empty()).map(|piece| self.id(piece)).collect()
    }

    /// The id of one piece.
    pub(super) fn id(&self, piece: &str) -> Result<u32> {
        if let Some(id) = SPECIAL_STRINGS.iter().position(|special| *special == piece) {
            return Ok(id as u32);
        }
        // "07" and "+7" are no numbers of this vocabulary although they parse.
        let number = piece.parse::<u32>().ok().filter(|number| number.to_string() == piece);
        match number {
            Some(number) if (number as usize) < self.count => Ok(FIRST_NUMBER + number),
            _ => Err(Error::Encode(format!(
                "'{}' is neither a number below {} nor a special token",
                piece.escape_debug(),
                self.count
            ))),
        }
    }

    /// The strings joined by single spaces; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let strings: Vec<String> = ids
            .iter()
            .filter(|&&id| (id as usize) < self.vocab_size() && !(skip_special && id < FIRST_NUMBER))
            .map(|&id| match SPECIAL_STRINGS.get(id as usize) {
                Some(special) => (*special).to_owned(),
                None => (id - FIRST_NUMBER).to_string(),
            })
            .collect();
        strings.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_numbers_in_range_are_tokens() {
        let tokenizer = NumbersTokenizer::new(20);
        assert_eq!(tokenizer.encode("0 19").unwrap(), [7, 26]);
        for text in ["20", "07", "+7", "-1", "1\t2", "x", "99999999999"] {
            assert!(tokenizer.encode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn decoding_honours_the_flag_and_survives_any_id() {
        let tokenizer = NumbersTokenizer::new(20);
        assert_eq!(tokenizer.decode(&[1, 4, 7, 0], true), "0");
        assert_eq!(tokenizer.decode(&[1, 4, 7, 0], false), "[CLS] [BOS] 0 [PAD]");
        assert_eq!(tokenizer.decode(&[27, u32::MAX, 26], false), "19");
    }
}
