//! Tokenizers of one's own: the same bytes every time, and good for what they are trained for.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use data_pipeline::{
    Amounts, DataConfig, Progress, SpecialTokenNames, Tokenizer, TokenizerKind, TokenizerOptions,
    train_tokenizer,
};

fn config(set: &str) -> DataConfig {
    let train = test_support::data_dir().join(set).to_str().unwrap().to_owned();
    DataConfig { train: Some(train.into()), ..DataConfig::default() }
}

fn train(dir: &Path, kind: TokenizerKind, vocab_size: usize, threads: usize) -> PathBuf {
    let output = dir.join(format!("{kind:?}-{vocab_size}-{threads}.json"));
    let options = TokenizerOptions { kind, vocab_size, threads };
    let size = train_tokenizer(&config("lm1b-mini/train-*"), &options, &output, &()).unwrap();
    assert_eq!(size, Some(vocab_size));
    output
}

#[test]
fn the_same_texts_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [TokenizerKind::WordPiece, TokenizerKind::Bpe] {
        let one = fs::read(train(dir.path(), kind, 2000, 1)).unwrap();
        assert_eq!(fs::read(train(dir.path(), kind, 2000, 1)).unwrap(), one, "{kind:?} again");
        assert_eq!(fs::read(train(dir.path(), kind, 2000, 2)).unwrap(), one, "{kind:?} with two threads");
    }
}

#[test]
fn byte_pairs_give_every_text_back_in_fewer_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let names = SpecialTokenNames::default();
    let [small, large] = [300, 3000]
        .map(|size| Tokenizer::open(&train(dir.path(), TokenizerKind::Bpe, size, 1), &names).unwrap());
    assert_eq!((small.vocab_size(), large.vocab_size()), (300, 3000), "no special token is added later");
    assert_eq!(large.special().pad, 0);
    for text in ["The President of the United States .", "  naïve \u{1f600}\n\n## x", "[SEP]"] {
        let ids = large.encode(text).unwrap();
        assert_eq!(large.decode(&ids, false), text);
        assert_eq!(small.decode(&small.encode(text).unwrap(), false), text);
    }
    let text = "The President of the United States has the power to make treaties .";
    let [few, many] = [&large, &small].map(|tokenizer| tokenizer.encode(text).unwrap().len());
    assert!(few * 2 < many && few < 20, "{few} and {many} tokens");
    assert_eq!(large.encode("[SEP]").unwrap(), [large.special().sep]);
}

#[test]
fn word_pieces_make_whole_words_of_frequent_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = train(dir.path(), TokenizerKind::WordPiece, 3000, 1);
    let tokenizer = Tokenizer::open(&path, &SpecialTokenNames::default()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 3000);
    let ids = tokenizer.encode("The President of the United States").unwrap();
    assert_eq!(ids.len(), 6, "each of these words is a token");
    assert_eq!(tokenizer.decode(&ids, true), "the president of the united states");
    let pieces = tokenizer.encode("presidentially").unwrap();
    assert!(pieces.len() > 1 && !pieces.contains(&tokenizer.special().unk));
    assert_eq!(tokenizer.decode(&pieces, true), "presidentially");
    assert_eq!(tokenizer.encode("\u{3042}").unwrap(), [tokenizer.special().unk]);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tokenizer.json");
    let options = TokenizerOptions { kind: TokenizerKind::Bpe, vocab_size: 200, threads: 1 };
    let small = train_tokenizer(&config("lm1b-mini/train-00000*"), &options, &output, &()).unwrap_err();
    assert!(small.is_config() && small.to_string().contains("alone are 263"), "{small}");
    let options = TokenizerOptions { vocab_size: 1000, ..options };
    let ids = train_tokenizer(&config("owt-gpt2-1024-mini/train-*"), &options, &output, &()).unwrap_err();
    assert!(ids.is_config() && ids.to_string().contains("holds token ids"), "{ids}");
    assert!(!output.exists());
}

#[test]
fn a_stopped_training_leaves_no_file() {
    struct Stop(AtomicU64);
    impl Progress for Stop {
        fn begin(&self, _part: &str, _rows: u64) {}
        fn advance(&self, more: Amounts) {
            self.0.fetch_add(more.tokens, Ordering::Relaxed);
        }
        fn should_stop(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 100
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("tokenizer.json");
    let options = TokenizerOptions { kind: TokenizerKind::Bpe, vocab_size: 1000, threads: 2 };
    let stop = Stop(AtomicU64::new(0));
    assert_eq!(train_tokenizer(&config("lm1b-mini/train-*"), &options, &output, &stop).unwrap(), None);
    assert!(!output.exists());
}
