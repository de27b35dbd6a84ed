//! Texts to ids and back, with every special role filled.

mod bytes;
mod hugging_face;
mod merges;
mod numbers;
mod plain;
mod train;
mod words;

use std::path::Path;

use rayon::prelude::*;

pub use hugging_face::HuggingFaceTokenizer;
pub(crate) use numbers::FIRST_NUMBER;
pub use numbers::NumbersTokenizer;
pub use plain::PlainTokenizer;
pub use train::{TokenizerKind, TokenizerOptions, train_tokenizer};

use crate::{config::SpecialTokenNames, error::Result};

/// The ids that play the special roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Padding (dense views only; batches have none).
    pub pad: u32,
    /// First token of every row; the stopping head reads it.
    pub cls: u32,
    /// Mask.
    pub mask: u32,
    /// End of text.
    pub eos: u32,
    /// Begin of the segment that tokens are dropped from.
    pub bos: u32,
    /// Separator.
    pub sep: u32,
    /// Unknown piece.
    pub unk: u32,
}

/// A tokenizer with all special roles.
#[derive(Debug)]
pub enum Tokenizer {
    /// Node numbers of star graphs.
    Numbers(NumbersTokenizer),
    /// A `tokenizer.json`.
    HuggingFace(Box<HuggingFaceTokenizer>),
    /// The bytes of a text.
    Bytes,
}

impl Tokenizer {
    /// The tokenizer of the numbers `0..count`.
    pub fn numbers(count: usize) -> Self {
        Self::Numbers(NumbersTokenizer::new(count))
    }

    /// Reads a `tokenizer.json` and adds the special tokens it lacks after its last id.
    ///
    /// # Errors
    /// See [`HuggingFaceTokenizer::open`].
    pub fn open(path: &Path, names: &SpecialTokenNames) -> Result<Self> {
        Ok(Self::HuggingFace(Box::new(HuggingFaceTokenizer::open(path, names)?)))
    }

    /// One more than the highest id, special tokens included: the rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Numbers(tokenizer) => tokenizer.vocab_size(),
            Self::HuggingFace(tokenizer) => tokenizer.vocab_size(),
            Self::Bytes => bytes::VOCAB_SIZE,
        }
    }

    /// The special ids.
    pub fn special(&self) -> &SpecialTokens {
        match self {
            Self::Numbers(_) => &numbers::SPECIAL,
            Self::HuggingFace(tokenizer) => tokenizer.special(),
            Self::Bytes => &bytes::SPECIAL,
        }
    }

    /// The ids of a text; none are added around it. A special token's string in the text becomes its id.
    ///
    /// # Errors
    /// [`crate::Error::Encode`] for a text that has no ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Numbers(tokenizer) => tokenizer.encode(text),
            Self::HuggingFace(tokenizer) => tokenizer.encode(text),
            Self::Bytes => Ok(bytes::encode(text)),
        }
    }

    /// [`encode`](Self::encode) for many texts, spread over the rayon pool that this runs in; one result a text.
    pub fn encode_batch(&self, texts: &[&str]) -> Vec<Result<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The text of ids, with or without special tokens; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        match self {
            Self::Numbers(tokenizer) => tokenizer.decode(ids, skip_special),
            Self::HuggingFace(tokenizer) => tokenizer.decode(ids, skip_special),
            Self::Bytes => bytes::decode(ids),
        }
    }

    /// The id of a token's string; none if it is not one token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Numbers(tokenizer) => tokenizer.id(token).ok(),
            Self::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
            Self::Bytes => match token.as_bytes() {
                [byte] => Some(u32::from(*byte)),
                _ => None,
            },
        }
    }

    /// A hash that changes when the same text may get other ids.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Numbers(tokenizer) => format!("numbers-{}", tokenizer.vocab_size()),
            Self::HuggingFace(tokenizer) => tokenizer.fingerprint().to_owned(),
            Self::Bytes => "bytes".to_owned(),
        }
    }
}
