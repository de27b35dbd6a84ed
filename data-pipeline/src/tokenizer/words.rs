//! Words repeat: a text is encoded word by word, and every thread remembers the ids of the words it has met.

use std::{cell::RefCell, ops::Range};

use ahash::AHashMap;
use thread_local::ThreadLocal;
use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Json,
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::error::Result;

/// Longer words hardly come twice.
const MAX_WORD_BYTES: usize = 64;
/// Words a thread remembers (some 10 MB); it then starts over, so that it follows the text.
const MAX_WORDS: usize = 1 << 17;

/// The text in words and marks: a word begins with the white space before it. Joined they are the text.
///
/// No pattern of the tokenizers that [`is_local`] allows reaches over one of these cuts, and they look ahead only inside
/// white space.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let is_cut = move |at: usize| {
        let before = bytes[at - 1];
        match bytes[at] {
            b' ' | b'\n' | b'\t' | b'\r' if before.is_ascii() => before.is_ascii_graphic(),
            b' ' | b'\n' | b'\t' | b'\r' => text[..at].chars().next_back().is_some_and(char::is_alphanumeric),
            mark => is_mark(mark) && before.is_ascii_alphanumeric(),
        }
    };
    let mut start = 0;
    std::iter::from_fn(move || {
        (start < bytes.len()).then(|| {
            let end = (start + 1..bytes.len()).find(|&at| is_cut(at)).unwrap_or(bytes.len());
            let word = &text[start..end];
            start = end;
            word
        })
    })
}

/// Marks behind a word, which would otherwise make another word of it.
fn is_mark(byte: u8) -> bool {
    matches!(byte, b',' | b'.' | b';' | b':' | b'!' | b'?' | b')' | b'"')
}

/// Whether the ids of a text are the ids of its [`words`] one after the other. Known of BERT's tokenizers and of GPT-2's; all
/// others are asked for whole texts.
pub(super) fn is_local(json: &Json) -> bool {
    let bert = match (json.get_normalizer(), json.get_pre_tokenizer(), json.get_model()) {
        (
            Some(NormalizerWrapper::BertNormalizer(_)),
            Some(PreTokenizerWrapper::BertPreTokenizer(_)),
            ModelWrapper::WordPiece(_),
        ) => true,
        (
            None,
            Some(PreTokenizerWrapper::ByteLevel(ByteLevel {
                add_prefix_space: false, use_regex: true, ..
            })),
            ModelWrapper::BPE(model),
        ) if model.dropout.is_none() => false,
        _ => return false,
    };
    // Without a normalizer nothing is normalised, whatever a token says.
    json.get_added_tokens_decoder().values().all(|token| {
        let reaches_out = token.lstrip || token.rstrip || token.single_word || (bert && token.normalized);
        let is_cut = token.content.contains(char::is_whitespace) || token.content.bytes().any(is_mark);
        !(reaches_out || is_cut)
    })
}

/// The ids of words, remembered by each thread for itself: no locks.
#[derive(Debug, Default)]
pub(super) struct WordMemo {
    threads: ThreadLocal<RefCell<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    words: AHashMap<Box<str>, Range<usize>>,
    ids: Vec<u32>,
}

impl WordMemo {
    /// The ids of a text, of which `encode` is asked for the words that the thread does not know.
    pub fn encode(&self, text: &str, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Vec<u32>> {
        let mut known = self.threads.get_or_default().borrow_mut();
        let mut ids = Vec::with_capacity(text.len() / 4);
        for word in words(text) {
            if let Some(place) = known.words.get(word) {
                ids.extend_from_slice(&known.ids[place.clone()]);
                continue;
            }
            let new = encode(word)?;
            if word.len() <= MAX_WORD_BYTES {
                known.insert(word, &new);
            }
            ids.extend(new);
        }
        Ok(ids)
    }
}

impl Known {
    fn insert(&mut self, word: &str, ids: &[u32]) {
        if self.words.len() >= MAX_WORDS {
            self.words.clear();
            self.ids.clear();
        }
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.words.insert(word.into(), start..self.ids.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_begins_with_its_white_space_and_ends_before_a_mark() {
        let split = |text| words(text).collect::<Vec<_>>();
        assert_eq!(split("It 's  so,\n\nold café ."), ["It", " 's", "  so", ",", "\n\nold", " café", " ."]);
        assert_eq!(split(" \t a"), [" \t a"]);
        assert_eq!(split("1,000.5 é. x?!"), ["1", ",000", ".5", " é.", " x", "?!"]);
        assert_eq!(
            split("a\u{a0} b\u{301} c"),
            ["a\u{a0} b\u{301} c"],
            "only behind letters, digits and signs"
        );
        assert!(split("").is_empty());
    }

    #[test]
    fn a_full_memory_starts_over() {
        let memo = WordMemo::default();
        let numbers: Vec<String> = (0..MAX_WORDS + 10).map(|number| number.to_string()).collect();
        let text = numbers.join(" ");
        let length = |word: &str| Ok(vec![word.len() as u32]);
        let once = memo.encode(&text, length).unwrap();
        assert_eq!(once, words(&text).map(|word| word.len() as u32).collect::<Vec<_>>());
        assert!(memo.threads.get_or_default().borrow().words.len() < 20);
        assert_eq!(memo.encode(&text, length).unwrap(), once);
    }
}
