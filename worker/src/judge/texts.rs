//! The texts to be judged: a JSON object a line, as `generate` writes them, or a text a line.

use std::fs;
use std::path::Path;

use data_pipeline::PlainTokenizer;
use ilm_model::metrics::TextScore;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::generate::RequestError;

/// A text to be judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// Its line, if that is JSON and still wanted.
    pub line: Option<String>,
    /// The text.
    pub text: String,
    /// The judge's tokens, no more than it can read.
    pub tokens: Vec<i64>,
    /// Whether it has more of them.
    pub is_cut: bool,
    /// What the generator's own tokens say of it, if its line has them (`ids`).
    pub score: Option<TextScore>,
}

/// What is read of a line in JSON; whatever else it has is kept.
#[derive(Debug, Default, Deserialize)]
struct Line {
    text: String,
    ids: Option<Vec<i64>>,
}

/// Reads a file: `*.jsonl` has objects with a `text`, any other file a text a line. Texts of more than `most_tokens` are cut;
/// lines are kept if `keeps_lines`, for who writes them again.
///
/// # Errors
/// The first line that is no text.
pub fn texts(
    path: &Path,
    tokenizer: &PlainTokenizer,
    most_tokens: usize,
    keeps_lines: bool,
) -> Result<Vec<Text>, RequestError> {
    let content =
        fs::read_to_string(path).map_err(|source| RequestError::Read { path: path.to_owned(), source })?;
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
    let lines: Vec<&str> = content.lines().collect();
    let read = |(index, &line): (usize, &&str)| {
        let parsed = if is_json {
            serde_json::from_str(line)
                .map_err(|error| format!("it is no object in JSON with a text: {error}"))
        } else {
            Ok(Line { text: line.to_owned(), ids: None })
        };
        let kept = (is_json && keeps_lines).then(|| line.to_owned());
        parsed
            .and_then(|line| Text::new(line, kept, tokenizer, most_tokens))
            .map_err(|problem| RequestError::Line { path: path.to_owned(), line: index + 1, problem })
    };
    lines.par_iter().enumerate().map(read).collect()
}

impl Text {
    fn new(
        Line { text, ids }: Line,
        line: Option<String>,
        tokenizer: &PlainTokenizer,
        most_tokens: usize,
    ) -> Result<Self, String> {
        let tokens = tokenizer.encode(&text).map_err(|error| error.to_string())?;
        Ok(Self {
            line,
            text,
            tokens: tokens.iter().take(most_tokens).map(|&id| i64::from(id)).collect(),
            is_cut: tokens.len() > most_tokens,
            score: ids.map(|ids| TextScore::new(&ids)),
        })
    }

    /// What its line says of it.
    ///
    /// # Errors
    /// None of a line that was read.
    pub fn fields(&self) -> serde_json::Result<Map<String, Value>> {
        match &self.line {
            Some(line) => serde_json::from_str(line),
            None => Ok(Map::from_iter([("text".to_owned(), self.text.as_str().into())])),
        }
    }
}
