//! A `tokenizer.json` as it stands: text to ids and back, without tokens of ours.

use std::path::Path;

use tokenizers::Tokenizer as Json;

use super::words::{WordMemo, is_local};
use crate::error::{Error, Result};

/// A tokenizer of the `tokenizers` format.
#[derive(Debug)]
pub struct PlainTokenizer {
    json: Json,
    /// None for a tokenizer that must see a text as a whole.
    pub(super) words: Option<WordMemo>,
}

impl PlainTokenizer {
    /// Reads the file. Truncation and padding it may ask for are switched off: who reads texts does his own.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Tokenizer`] for the file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::new(parse(path, &read(path)?)?))
    }

    pub(super) fn new(json: Json) -> Self {
        let words = is_local(&json).then(WordMemo::default);
        Self { json, words }
    }

    pub(super) fn json(&self) -> &Json {
        &self.json
    }

    /// The ids of a text, without any around it.
    ///
    /// # Errors
    /// [`Error::Encode`] with the library's reason.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.words {
            Some(words) => words.encode(text, |word| self.encode_whole(word)),
            None => self.encode_whole(text),
        }
    }

    /// As [`encode`](Self::encode), without the words that are known already.
    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let encoding =
            self.json.encode_fast(text, false).map_err(|error| Error::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The bytes of a tokenizer file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

/// What they say, without truncation and padding.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Json> {
    let mut json = Json::from_bytes(bytes).map_err(|error| unusable(path, &*error))?;
    json.with_truncation(None).map_err(|error| unusable(path, &*error))?;
    json.with_padding(None);
    Ok(json)
}

pub(super) fn unusable(path: &Path, reason: &dyn std::error::Error) -> Error {
    Error::Tokenizer { path: path.to_owned(), reason: reason.to_string() }
}
