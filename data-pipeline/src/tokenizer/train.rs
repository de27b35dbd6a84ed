//! A tokenizer of one's own: words of the training split are counted, pairs merged, and all is written as `tokenizer.json`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use ahash::AHashMap;
use tokenizers::{
    AddedToken, DecoderWrapper, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Tokenizer as Json,
    decoders::wordpiece::WordPiece as WordPieceDecoder,
    models::{ModelWrapper, bpe::BPE, wordpiece::WordPiece},
    normalizers::BertNormalizer,
    pre_tokenizers::{bert::BertPreTokenizer, byte_level::ByteLevel},
};

use super::{
    Tokenizer,
    merges::{Merges, Vocabulary, Word},
    words::words,
};
use crate::{
    config::{DataConfig, SpecialTokenNames},
    dataset::Dataset,
    error::{Error, Result},
    open::Split,
    output::replace_file,
    prepare::source_files,
    progress::{Amounts, Progress, in_parallel},
};

/// Pairs that occur less often become no token.
const MIN_FREQUENCY: u64 = 2;
/// Nothing is learnt from longer words, which are no words.
const MAX_WORD_BYTES: usize = 256;
/// Characters that word pieces may begin with or consist of: the most frequent ones.
const MAX_CHARACTERS: usize = 1000;
/// Mark of a word piece that continues a word.
const CONTINUES: &str = "##";
/// Rows or merges between two words to the progress.
const STRIDE: u64 = 256;

/// What a tokenizer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Lower-case word pieces, as BERT's.
    WordPiece,
    /// Pairs of bytes, as GPT-2's: every text is decoded to exactly itself.
    Bpe,
}

/// How a tokenizer is trained.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerOptions {
    /// What it is made of.
    pub kind: TokenizerKind,
    /// Tokens at most, special ones included; a small text may give fewer.
    pub vocab_size: usize,
    /// Threads that read.
    pub threads: usize,
}

/// Trains a tokenizer on the training split and writes it to `output`; returns the number of its tokens, or none if the job
/// was asked to stop (nothing is written then). The special tokens of `data.special_tokens` get the first ids.
///
/// The same texts give the same bytes, whatever the number of threads. Memory grows with the number of different words.
///
/// # Errors
/// As for [`DataConfig::open_split`]; a vocabulary too small for the characters; files of token ids.
pub fn train_tokenizer(
    config: &DataConfig,
    options: &TokenizerOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<Option<usize>> {
    let counts = count_words(config, options, progress)?;
    let mut json = blank(options.kind);
    let mut vocabulary = Vocabulary::default();
    let special = special_tokens(&config.special_tokens);
    special.iter().for_each(|token| _ = vocabulary.id(token));
    let words = tokens_of(counts, &json, options.kind, &mut vocabulary)?;
    if vocabulary.len() > options.vocab_size {
        return Err(Error::Setting(format!(
            "a vocabulary of {} is too small: the special tokens and the characters alone are {}",
            options.vocab_size,
            vocabulary.len()
        )));
    }
    let merges = learn(words, &mut vocabulary, options, progress);
    if progress.should_stop() {
        return Ok(None);
    }
    let size = vocabulary.len();
    let failed =
        |error: tokenizers::Error| Error::Write { path: output.to_owned(), reason: error.to_string() };
    let model = model(options.kind, vocabulary, merges, &config.special_tokens.unk).map_err(failed)?;
    json.with_model(model);
    json.add_special_tokens(special.into_iter().map(|token| AddedToken::from(token, true)))
        .map_err(failed)?;
    replace_file(output, json.to_string(true).map_err(failed)?.as_bytes())?;
    Ok(Some(size))
}

/// How often every word occurs in the training split, in the order of the words.
fn count_words(
    config: &DataConfig,
    options: &TokenizerOptions,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, u64>> {
    if options.threads == 0 {
        return Err(Error::Setting("threads must be at least 1".into()));
    }
    let reading = DataConfig { max_tokens: None, ..config.clone() };
    let dataset = reading.open_split(Split::Train, &Arc::new(Tokenizer::Bytes), 0)?;
    let files = source_files(dataset.as_ref(), Split::Train)?;
    if let Some(file) = files.iter().find(|file| !file.is_text) {
        return Err(Error::Setting(format!(
            "'{}' holds token ids; a tokenizer is trained on texts",
            file.path
        )));
    }
    progress.begin("reading", dataset.len());
    let maps = in_parallel(files.len(), options.threads, progress, AHashMap::new, |counts, index| {
        count_rows(dataset.as_ref(), files[index].rows.clone(), counts, progress)
    })?;
    let mut total = BTreeMap::new();
    for (word, count) in maps.into_iter().flatten() {
        *total.entry(word).or_default() += count;
    }
    Ok(total)
}

fn count_rows(
    dataset: &dyn Dataset,
    rows: std::ops::Range<u64>,
    counts: &mut AHashMap<String, u64>,
    progress: &dyn Progress,
) -> Result<()> {
    let (end, mut told, mut result) = (rows.end, rows.start, Ok(()));
    dataset.each_example(&mut { rows }, &mut |row, example| {
        let example = match example {
            Ok(example) => example,
            Err(error) => {
                result = Err(error);
                return false;
            }
        };
        if let Some(example) = example {
            let text = Tokenizer::Bytes.decode(&example.tokens, true);
            for word in words(&text).filter(|word| word.len() <= MAX_WORD_BYTES) {
                match counts.get_mut(word) {
                    Some(count) => *count += 1,
                    None => _ = counts.insert(word.to_owned(), 1),
                }
            }
        }
        let tells = row + 1 - told == STRIDE || row + 1 == end;
        if tells {
            progress.advance(Amounts { rows: row + 1 - told, ..Amounts::default() });
            told = row + 1;
        }
        !(tells && progress.should_stop())
    });
    result?;
    progress.advance(Amounts { files: 1, ..Amounts::default() });
    Ok(())
}

/// A tokenizer that splits words, without tokens yet.
fn blank(kind: TokenizerKind) -> Json {
    let mut json = Json::new(ModelWrapper::BPE(BPE::default()));
    match kind {
        TokenizerKind::WordPiece => {
            // Fails only for added tokens, of which there are none.
            let _ = json.with_normalizer(Some(BertNormalizer::default()));
            json.with_pre_tokenizer(Some(BertPreTokenizer));
            json.with_decoder(Some(WordPieceDecoder::new(CONTINUES.into(), true)));
        }
        TokenizerKind::Bpe => {
            let bytes = ByteLevel::new(false, true, true);
            json.with_pre_tokenizer(Some(bytes));
            json.with_decoder(Some(DecoderWrapper::ByteLevel(bytes)));
        }
    }
    json
}

/// The roles' strings, each once.
fn special_tokens(names: &SpecialTokenNames) -> Vec<String> {
    let SpecialTokenNames { pad, cls, mask, eos, bos, sep, unk } = names;
    let mut tokens = Vec::new();
    for name in [pad, unk, cls, sep, mask, bos, eos] {
        if !tokens.contains(name) {
            tokens.push(name.clone());
        }
    }
    tokens
}

/// The pieces that the model will see, as characters of the vocabulary, which gets all it needs.
fn tokens_of(
    counts: BTreeMap<String, u64>,
    json: &Json,
    kind: TokenizerKind,
    vocabulary: &mut Vocabulary,
) -> Result<Vec<Word>> {
    let mut pieces = BTreeMap::<String, u64>::new();
    for (word, count) in counts {
        for piece in split(&word, json.get_normalizer(), json.get_pre_tokenizer())? {
            *pieces.entry(piece).or_default() += count;
        }
    }
    let alphabet = match kind {
        TokenizerKind::WordPiece => frequent_characters(&pieces),
        TokenizerKind::Bpe => {
            let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
            bytes.sort_unstable();
            bytes
        }
    };
    alphabet.iter().for_each(|letter| _ = vocabulary.id(&letter.to_string()));
    let id = |(place, letter): (usize, char), vocabulary: &mut Vocabulary| match kind {
        TokenizerKind::WordPiece if place > 0 => vocabulary.id(&format!("{CONTINUES}{letter}")),
        _ => vocabulary.id(&letter.to_string()),
    };
    // A word with another character will be unknown, so nothing is learnt from it.
    let known = pieces
        .into_iter()
        .filter(|(piece, _)| piece.chars().all(|letter| alphabet.binary_search(&letter).is_ok()));
    Ok(known
        .map(|(piece, count)| Word {
            ids: piece.chars().enumerate().map(|letter| id(letter, vocabulary)).collect(),
            count,
        })
        .collect())
}

/// The most frequent characters, sorted; of equally frequent ones the lower.
fn frequent_characters(pieces: &BTreeMap<String, u64>) -> Vec<char> {
    let mut counts = BTreeMap::<char, u64>::new();
    for (piece, count) in pieces {
        piece.chars().for_each(|letter| *counts.entry(letter).or_default() += count);
    }
    let mut by_count: Vec<(char, u64)> = counts.into_iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut letters: Vec<char> =
        by_count.into_iter().take(MAX_CHARACTERS).map(|(letter, _)| letter).collect();
    letters.sort_unstable();
    letters
}

fn split(
    word: &str,
    normalizer: Option<&NormalizerWrapper>,
    pre_tokenizer: Option<&PreTokenizerWrapper>,
) -> Result<Vec<String>> {
    let mut text = PreTokenizedString::from(word);
    let failed = |error: tokenizers::Error| Error::Encode(error.to_string());
    if let Some(normalizer) = normalizer {
        text.normalize(|text| normalizer.normalize(text)).map_err(failed)?;
    }
    if let Some(pre_tokenizer) = pre_tokenizer {
        pre_tokenizer.pre_tokenize(&mut text).map_err(failed)?;
    }
    let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits.into_iter().map(|(piece, _, _)| piece.to_owned()).filter(|piece| !piece.is_empty()).collect())
}

/// Merges until the vocabulary is full.
fn learn(
    words: Vec<Word>,
    vocabulary: &mut Vocabulary,
    options: &TokenizerOptions,
    progress: &dyn Progress,
) -> Vec<(String, String)> {
    progress.begin("merging", (options.vocab_size - vocabulary.len()) as u64);
    let join = |left: &str, right: &str| match options.kind {
        TokenizerKind::WordPiece => format!("{left}{}", right.strip_prefix(CONTINUES).unwrap_or(right)),
        TokenizerKind::Bpe => format!("{left}{right}"),
    };
    let (mut merges, mut learnt) = (Merges::new(words), Vec::new());
    while vocabulary.len() < options.vocab_size && !progress.should_stop() {
        let Some(pair) = merges.next(MIN_FREQUENCY) else { break };
        let [left, right] = [pair.0, pair.1].map(|id| vocabulary.strings[id as usize].clone());
        let before = vocabulary.len();
        let merged = vocabulary.id(&join(&left, &right));
        merges.merge(pair, merged);
        learnt.push((left, right));
        let made = (vocabulary.len() - before) as u64;
        progress.advance(Amounts { rows: made, tokens: made, ..Amounts::default() });
    }
    learnt
}

fn model(
    kind: TokenizerKind,
    vocabulary: Vocabulary,
    merges: Vec<(String, String)>,
    unk: &str,
) -> tokenizers::Result<ModelWrapper> {
    Ok(match kind {
        TokenizerKind::WordPiece => ModelWrapper::WordPiece(
            WordPiece::builder()
                .vocab(vocabulary.into_ids())
                .unk_token(unk.to_owned())
                .continuing_subword_prefix(CONTINUES.into())
                .build()?,
        ),
        TokenizerKind::Bpe => {
            ModelWrapper::BPE(BPE::builder().vocab_and_merges(vocabulary.into_ids(), merges).build()?)
        }
    })
}
