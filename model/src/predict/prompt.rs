//! What a prediction starts from: tokens in text order, and the gaps that may be filled.

use crate::error::{Error, Result};

/// Where one row starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Keys the random choices, so results do not depend on how rows are batched.
    pub id: u64,
    /// Tokens in text order, CLS among them.
    pub tokens: Vec<i64>,
    /// 0 for CLS, 1 for tokens that are given, 2 for BOS and everything else.
    pub token_types: Vec<i64>,
    /// True where nothing may be inserted right of a token; none takes it from the token types.
    pub closed: Option<Vec<bool>>,
    /// The row stops at this many tokens, whatever the settings allow.
    pub max_length: Option<usize>,
}

/// The special tokens that prediction knows by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// First token of every row.
    pub cls: i64,
    /// Where the generated text begins.
    pub bos: i64,
    /// No text: taken out of the result wherever it was inserted.
    pub pad: i64,
    /// As `pad`.
    pub mask: i64,
}

impl Prompt {
    /// `[CLS, BOS]`: a text of its own.
    pub fn unconditional(id: u64, special: SpecialIds) -> Self {
        Self::seq2seq(id, &[], special)
    }

    /// `[CLS, prompt.., BOS]`: an answer behind the prompt.
    pub fn seq2seq(id: u64, prompt: &[i64], special: SpecialIds) -> Self {
        let tokens = [&[special.cls], prompt, &[special.bos]].concat();
        let mut token_types = vec![1; tokens.len()];
        token_types[0] = 0;
        token_types[tokens.len() - 1] = 2;
        Self { id, tokens, token_types, ..Self::default() }
    }

    /// `[CLS, BOS, prompt..]`: a text that begins with the prompt, which stays as it is.
    pub fn continuation(id: u64, prompt: &[i64], special: SpecialIds) -> Self {
        Self::infilling(id, &[prompt, &[]], special)
    }

    /// `[CLS, BOS, piece.., piece.., ..]`: a text with a gap of any length between any two neighbouring pieces, and nowhere
    /// else. An empty first or last piece lets the text begin or end with a gap.
    pub fn infilling<P: AsRef<[i64]>>(id: u64, pieces: &[P], special: SpecialIds) -> Self {
        let mut prompt =
            Self { id, tokens: vec![special.cls, special.bos], token_types: vec![0, 2], ..Self::default() };
        let mut closed = vec![true, true];
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                closed[prompt.tokens.len() - 1] = false;
            }
            prompt.tokens.extend(piece.as_ref());
            closed.resize(prompt.tokens.len(), true);
        }
        prompt.token_types.resize(prompt.tokens.len(), 1);
        prompt.closed = Some(closed);
        prompt
    }

    /// The gaps that are closed at the start; `lowest_open` is the smallest token type whose gap is open.
    pub(super) fn closed(&self, lowest_open: i64) -> Result<Vec<bool>> {
        let fail = |problem: String| Err(Error::Prompt { id: self.id, problem });
        let len = self.tokens.len();
        if self.token_types.len() != len {
            return fail(format!("it has {len} tokens but {} token types", self.token_types.len()));
        }
        if !self.token_types.contains(&0) {
            return fail("it has no CLS (no token of type 0)".to_owned());
        }
        let by_type = || self.token_types.iter().map(|&kind| kind < lowest_open).collect();
        let closed: Vec<bool> = self.closed.clone().unwrap_or_else(by_type);
        if closed.len() != len {
            return fail(format!("it has {len} tokens but {} marks of closed gaps", closed.len()));
        }
        Ok(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { cls: 1, bos: 4, pad: 0, mask: 2 };

    #[test]
    fn types_fit_the_tokens_on_either_side_of_bos() {
        let answer = Prompt::seq2seq(3, &[8, 9], SPECIAL);
        assert_eq!(
            (answer.tokens.as_slice(), answer.token_types.as_slice()),
            (&[1, 8, 9, 4][..], &[0, 1, 1, 2][..])
        );
        assert_eq!(answer.closed(2).unwrap(), [true, true, true, false]);
        let text = Prompt::continuation(3, &[8, 9], SPECIAL);
        assert_eq!(
            (text.tokens.as_slice(), text.token_types.as_slice()),
            (&[1, 4, 8, 9][..], &[0, 2, 1, 1][..])
        );
        assert_eq!(text.closed(1).unwrap(), [true, true, true, false]);
        let alone = Prompt::unconditional(0, SPECIAL);
        assert_eq!(
            (alone.tokens.as_slice(), alone.closed(1).unwrap().as_slice()),
            (&[1, 4][..], &[true, false][..])
        );
        assert_eq!(Prompt::continuation(0, &[], SPECIAL).closed(1).unwrap(), [true, false]);
    }

    #[test]
    fn gaps_lie_between_pieces_only() {
        let pieces: [&[i64]; 4] = [&[8, 9], &[7], &[], &[6]];
        let prompt = Prompt::infilling(0, &pieces, SPECIAL);
        assert_eq!(prompt.tokens, [1, 4, 8, 9, 7, 6]);
        assert_eq!(prompt.closed(1).unwrap(), [true, true, true, false, false, true]);
        let ends: [&[i64]; 3] = [&[], &[5], &[]];
        assert_eq!(Prompt::infilling(0, &ends, SPECIAL).closed(1).unwrap(), [true, false, false]);
        let none: [&[i64]; 1] = [&[5]];
        assert_eq!(Prompt::infilling(0, &none, SPECIAL).closed(1).unwrap(), [true, true, true]);
    }
}
