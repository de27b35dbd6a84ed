//! A `tokenizer.json` whose missing special roles are filled by new ids after its last one, in a fixed order.

use std::{collections::HashSet, path::Path};

use tokenizers::AddedToken;
use xxhash_rust::xxh3::Xxh3;

use super::{
    SpecialTokens,
    plain::{PlainTokenizer, parse, read, unusable},
};
use crate::{
    config::SpecialTokenNames,
    error::{Error, Result},
};

/// A tokenizer of the `tokenizers` format.
#[derive(Debug)]
pub struct HuggingFaceTokenizer {
    plain: PlainTokenizer,
    special: SpecialTokens,
    vocab_size: usize,
    fingerprint: String,
}

impl HuggingFaceTokenizer {
    /// Reads the file, as [`PlainTokenizer::open`] does.
    ///
    /// A role whose string the file lacks gets a new id; the order is cls, bos, eos, pad, unk, mask, sep.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Tokenizer`] for the file; [`Error::Setting`] for names that are empty or shared by
    /// roles that must differ (pad, cls and bos; mask and bos).
    pub fn open(path: &Path, names: &SpecialTokenNames) -> Result<Self> {
        check_names(names)?;
        let bytes = read(path)?;
        let mut json = parse(path, &bytes)?;
        let in_order = [&names.cls, &names.bos, &names.eos, &names.pad, &names.unk, &names.mask, &names.sep];
        for name in in_order {
            if json.token_to_id(name).is_none() {
                json.add_special_tokens([AddedToken::from(name.as_str(), true)])
                    .map_err(|error| unusable(path, &*error))?;
            }
        }
        let id = |name: &String| {
            json.token_to_id(name).ok_or_else(|| Error::Tokenizer {
                path: path.to_owned(),
                reason: format!("the special token '{name}' cannot be added"),
            })
        };
        let special = SpecialTokens {
            pad: id(&names.pad)?,
            cls: id(&names.cls)?,
            mask: id(&names.mask)?,
            eos: id(&names.eos)?,
            bos: id(&names.bos)?,
            sep: id(&names.sep)?,
            unk: id(&names.unk)?,
        };
        let vocab_size = json.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let fingerprint = fingerprint(&bytes, &special);
        Ok(Self { plain: PlainTokenizer::new(json), special, vocab_size, fingerprint })
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The special ids.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The ids of a text, without any around it.
    ///
    /// # Errors
    /// [`Error::Encode`] with the library's reason.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.plain.encode(text)
    }

    /// The id of a token's string.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.plain.json().token_to_id(token)
    }

    /// The text of ids. Should the file's own decoder fail, the tokens are joined by spaces.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.plain.json().decode(ids, skip_special).unwrap_or_else(|_| {
            let tokens: Vec<String> =
                ids.iter().filter_map(|&id| self.plain.json().id_to_token(id)).collect();
            tokens.join(" ")
        })
    }

    /// Hash of the file and the special ids.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn check_names(names: &SpecialTokenNames) -> Result<()> {
    let roles = [
        ("pad", &names.pad),
        ("cls", &names.cls),
        ("bos", &names.bos),
        ("mask", &names.mask),
        ("eos", &names.eos),
        ("sep", &names.sep),
        ("unk", &names.unk),
    ];
    if let Some((role, _)) = roles.iter().find(|(_, name)| name.is_empty()) {
        return Err(Error::Setting(format!("data.special_tokens.{role} is empty; give the token's string")));
    }
    // The model tells rows, their starts and paddings apart by these three.
    let distinct: HashSet<&String> = roles[..3].iter().map(|(_, name)| *name).collect();
    if distinct.len() < 3 {
        return Err(Error::Setting(
            "data.special_tokens: pad, cls and bos must be three different tokens".into(),
        ));
    }
    // Masks are taken out of what is generated, and BOS is a part of it.
    if names.mask == names.bos {
        return Err(Error::Setting("data.special_tokens: mask and bos must be two different tokens".into()));
    }
    Ok(())
}

fn fingerprint(file: &[u8], special: &SpecialTokens) -> String {
    let mut hash = Xxh3::new();
    hash.update(file);
    let SpecialTokens { pad, cls, mask, eos, bos, sep, unk } = special;
    for id in [pad, cls, mask, eos, bos, sep, unk] {
        hash.update(&id.to_le_bytes());
    }
    format!("{:032x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer as Json;

    use super::*;
    use crate::tokenizer::words::is_local;

    fn path(name: &str) -> std::path::PathBuf {
        test_support::data_dir().join("tokenizers").join(name).join("tokenizer.json")
    }

    fn gpt2_names() -> SpecialTokenNames {
        SpecialTokenNames {
            pad: "<|pad|>".into(),
            cls: "<|cls|>".into(),
            mask: "<|mask|>".into(),
            eos: "<|endoftext|>".into(),
            bos: "<|bos|>".into(),
            sep: "<|sep|>".into(),
            unk: "<|unk|>".into(),
        }
    }

    #[test]
    fn bert_gets_bos_and_eos() {
        let tokenizer =
            HuggingFaceTokenizer::open(&path("bert-base-uncased"), &SpecialTokenNames::default()).unwrap();
        let wanted =
            SpecialTokens { pad: 0, cls: 101, mask: 103, eos: 30_523, bos: 30_522, sep: 102, unk: 100 };
        assert_eq!(*tokenizer.special(), wanted);
        assert_eq!(tokenizer.vocab_size(), 30_524);
        let ids = tokenizer.encode("Hello, world!").unwrap();
        assert_eq!(ids, [7592, 1010, 2088, 999]);
        assert_eq!(tokenizer.decode(&[101, 30_522, 7592, 1010, 2088, 999], true), "hello, world!");
        assert_eq!(tokenizer.encode("").unwrap(), Vec::<u32>::new());
        assert_eq!((tokenizer.token_to_id("[BOS]"), tokenizer.token_to_id("no token")), (Some(30_522), None));
    }

    #[test]
    fn gpt2_gets_six_in_the_fixed_order() {
        let tokenizer = HuggingFaceTokenizer::open(&path("gpt2"), &gpt2_names()).unwrap();
        let wanted = SpecialTokens {
            cls: 50_257,
            bos: 50_258,
            eos: 50_256,
            pad: 50_259,
            unk: 50_260,
            mask: 50_261,
            sep: 50_262,
        };
        assert_eq!(*tokenizer.special(), wanted);
        assert_eq!(tokenizer.vocab_size(), 50_263);
        let text = "A naïve test, \n\n twice.";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), true), text);
    }

    #[test]
    fn words_are_encoded_as_in_the_whole_text() {
        let texts = [
            "It 's  so,\n\nold café .  \n",
            "  two [SEP] x<|endoftext|> y <|endoftext|>z  <|endoftext|> [ CLS ] [MASK]s",
            "don't 'twas 12,345.67 \u{a0} x\u{85} y\u{200b} z\u{180e} é\u{301} \u{301}a",
            "\u{4e2d}\u{6587} \u{3042}\u{3000}b \u{1f600} \u{fffd} \u{0} c\u{0} \tΣΑΣ ΟΔΟΣ İstanbul ﬁ",
            "a\r\nb\r\n\r\nc\t\td \u{2028}e",
            "a.\u{301}b \u{915}\u{93f}. c.) d.\" (e) f's. g'. 1.5,3",
            "",
        ];
        for (name, names) in [("gpt2", gpt2_names()), ("bert-base-uncased", SpecialTokenNames::default())] {
            let tokenizer = HuggingFaceTokenizer::open(&path(name), &names).unwrap();
            assert!(tokenizer.plain.words.is_some());
            for text in texts.iter().chain(&texts) {
                assert_eq!(
                    tokenizer.encode(text).unwrap(),
                    tokenizer.plain.encode_whole(text).unwrap(),
                    "{text:?}"
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_encoded_as_a_whole(text in "([ \\n\\t\\r]|\\PC|[a-z']|'s|[a-z][,.;:!?)\"]|\\.|\\[SEP\\]|<\\|endoftext\\|>|.){0,40}") {
            static BOTH: std::sync::LazyLock<[HuggingFaceTokenizer; 2]> = std::sync::LazyLock::new(|| [
                HuggingFaceTokenizer::open(&path("gpt2"), &gpt2_names()).unwrap(),
                HuggingFaceTokenizer::open(&path("bert-base-uncased"), &SpecialTokenNames::default()).unwrap(),
            ]);
            for tokenizer in BOTH.iter() {
                proptest::prop_assert_eq!(tokenizer.encode(&text).unwrap(), tokenizer.plain.encode_whole(&text).unwrap());
            }
        }
    }

    #[test]
    fn tokens_that_reach_over_spaces_are_looked_for_in_whole_texts() {
        let mut json = Json::from_file(path("gpt2")).unwrap();
        assert!(is_local(&json));
        json.add_special_tokens([AddedToken::from("<gap>", true).rstrip(true)]).unwrap();
        assert!(!is_local(&json));
        let mut json = Json::from_file(path("bert-base-uncased")).unwrap();
        assert!(is_local(&json));
        json.add_tokens([AddedToken::from("new york", false)]).unwrap();
        assert!(!is_local(&json));
    }

    #[test]
    fn fingerprint_follows_the_special_ids() {
        let open = |names: &SpecialTokenNames| HuggingFaceTokenizer::open(&path("gpt2"), names).unwrap();
        let other = SpecialTokenNames { eos: "<|eos|>".into(), ..gpt2_names() };
        assert_eq!(open(&gpt2_names()).fingerprint(), open(&gpt2_names()).fingerprint());
        assert_ne!(open(&gpt2_names()).fingerprint(), open(&other).fingerprint());
    }

    #[test]
    fn refuses_bad_files_and_names() {
        let names = SpecialTokenNames::default();
        let missing = HuggingFaceTokenizer::open(Path::new("no/such.json"), &names).unwrap_err();
        assert!(missing.is_config() && missing.to_string().contains("no/such.json"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        for content in ["", "{}", "not json", "{\"model\": {\"type\": \"BPE\"}}"] {
            std::fs::write(&file, content).unwrap();
            let error = HuggingFaceTokenizer::open(&file, &names).unwrap_err();
            assert!(error.to_string().contains("tokenizer.json"), "{error}");
        }
        let shared = SpecialTokenNames { bos: names.cls.clone(), ..names.clone() };
        assert!(HuggingFaceTokenizer::open(&file, &shared).unwrap_err().to_string().contains("different"));
        let blank = SpecialTokenNames { bos: names.mask.clone(), ..names.clone() };
        let blank = HuggingFaceTokenizer::open(&file, &blank).unwrap_err().to_string();
        assert!(blank.contains("mask and bos must be two different"), "{blank}");
        let empty = SpecialTokenNames { sep: String::new(), ..names };
        assert!(HuggingFaceTokenizer::open(&file, &empty).unwrap_err().to_string().contains("sep"));
    }
}
