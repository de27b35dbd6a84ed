//! Bytes as tokens: with it a data set gives its texts back, by the same files, rules and policies as in training.

use super::SpecialTokens;

/// Ids of the bytes are below the special ones.
pub(super) const SPECIAL: SpecialTokens =
    SpecialTokens { pad: 256, cls: 257, mask: 258, eos: 259, bos: 260, sep: 261, unk: 262 };

/// Bytes and special tokens.
pub(super) const VOCAB_SIZE: usize = 263;

/// The bytes of a text.
pub(super) fn encode(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// The text of bytes; special tokens have none.
pub(super) fn decode(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
