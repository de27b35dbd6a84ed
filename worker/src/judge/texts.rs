//! The texts to be judged: a JSON object a line, as `generate` writes them, or a text a line.

use std::fs;
use std::path::Path;

use data_pipeline::PlainTokenizer;
use ilm_model::metrics::TextScore;
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::generate::RequestError;

/// A text to be judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// What its line says of it.
    pub fields: Map<String, Value>,
    /// The text.
    pub text: String,
    /// The judge's tokens, no more than it can read.
    pub tokens: Vec<i64>,
    /// Whether it has more of them.
    pub is_cut: bool,
    /// What the generator's own tokens say of it, if its line has them (`ids`).
    pub score: Option<TextScore>,
}

/// Reads a file: `*.jsonl` has objects with a `text`, any other file a text a line. Texts of more than `most_tokens` are cut.
///
/// # Errors
/// The first line that is no text.
pub fn texts(path: &Path, tokenizer: &PlainTokenizer, most_tokens: usize) -> Result<Vec<Text>, RequestError> {
    let content =
        fs::read_to_string(path).map_err(|source| RequestError::Read { path: path.to_owned(), source })?;
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
    let lines: Vec<&str> = content.lines().collect();
    lines
        .par_iter()
        .enumerate()
        .map(|(index, line)| {
            let fields = if is_json { parse(line) } else { Ok(only(line)) };
            fields
                .and_then(|fields| Text::new(fields, tokenizer, most_tokens))
                .map_err(|problem| RequestError::Line { path: path.to_owned(), line: index + 1, problem })
        })
        .collect()
}

fn parse(line: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(line).map_err(|error| format!("it is no object in JSON: {error}"))
}

fn only(line: &str) -> Map<String, Value> {
    Map::from_iter([("text".to_owned(), line.into())])
}

impl Text {
    fn new(
        fields: Map<String, Value>,
        tokenizer: &PlainTokenizer,
        most_tokens: usize,
    ) -> Result<Self, String> {
        let Some(Value::String(text)) = fields.get("text") else {
            return Err("it has no string 'text'".to_owned());
        };
        let text = text.clone();
        let ids = tokenizer.encode(&text).map_err(|error| error.to_string())?;
        let ids_of_generator = fields.get("ids").map(|ids| serde_json::from_value::<Vec<i64>>(ids.clone()));
        let ids_of_generator =
            ids_of_generator.transpose().map_err(|_| "its 'ids' is no list of token ids".to_owned())?;
        Ok(Self {
            fields,
            text,
            tokens: ids.iter().take(most_tokens).map(|&id| i64::from(id)).collect(),
            is_cut: ids.len() > most_tokens,
            score: ids_of_generator.map(|ids| TextScore::new(&ids)),
        })
    }
}
