//! What is to be generated: a number of texts, or a file of prompts or of texts with gaps.

use std::fs;
use std::path::{Path, PathBuf};

use data_pipeline::{Task, Tokenizer};
use ilm_model::{Prompt, SpecialIds};
use serde::Deserialize;

/// A file of requests cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file cannot be read.
    #[error("cannot read '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A line of it is no request.
    #[error("line {line} of '{}': {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// One text to be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What prediction starts from.
    pub prompt: Prompt,
    /// Whether it is a text with gaps.
    pub infills: bool,
}

/// Where requests come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// This many texts out of nothing.
    Unconditional(usize),
    /// A file with a prompt a line.
    Prompts(&'a Path),
    /// A file with a text a line, whose gaps are marked by a string.
    Infill {
        /// The file.
        path: &'a Path,
        /// The mark.
        blank: &'a str,
    },
}

/// A line of a file `*.jsonl`; text, or token ids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    prompt: Option<Tokens>,
    pieces: Option<Vec<Tokens>>,
    max_length: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Tokens {
    Text(String),
    Ids(Vec<u32>),
}

/// A line, whatever its form.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// One for a prompt, several with a gap between any two.
    pieces: Vec<Tokens>,
    infills: bool,
    max_length: Option<usize>,
}

/// The requests of a source, with ids that count from 0.
///
/// # Errors
/// The first line that is no request.
pub fn requests(
    source: Source<'_>,
    task: Task,
    tokenizer: &Tokenizer,
    special: SpecialIds,
) -> Result<Vec<Request>, RequestError> {
    let path = match source {
        Source::Unconditional(count) => {
            let prompt = |id| Prompt::unconditional(id, special);
            return Ok((0..count as u64).map(|id| Request { prompt: prompt(id), infills: false }).collect());
        }
        Source::Prompts(path) | Source::Infill { path, .. } => path,
    };
    let text =
        fs::read_to_string(path).map_err(|source| RequestError::Read { path: path.to_owned(), source })?;
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let parsed = if is_json { parse_json(line) } else { Ok(parse_text(line, source)) };
            parsed
                .and_then(|line| request(index as u64, &line, task, tokenizer, special))
                .map_err(|problem| RequestError::Line { path: path.to_owned(), line: index + 1, problem })
        })
        .collect()
}

fn parse_text(line: &str, source: Source<'_>) -> Line {
    let (pieces, infills) = match source {
        Source::Infill { blank, .. } => {
            (line.split(blank).map(|piece| Tokens::Text(piece.into())).collect(), true)
        }
        _ => (vec![Tokens::Text(line.into())], false),
    };
    Line { pieces, infills, max_length: None }
}

fn parse_json(line: &str) -> Result<Line, String> {
    let JsonLine { prompt, pieces, max_length } =
        serde_json::from_str(line).map_err(|error| format!("it is not a request in JSON: {error}"))?;
    match (prompt, pieces) {
        (Some(prompt), None) => Ok(Line { pieces: vec![prompt], infills: false, max_length }),
        (None, Some(pieces)) => Ok(Line { pieces, infills: true, max_length }),
        _ => Err("it needs one of 'prompt' and 'pieces'".to_owned()),
    }
}

fn request(
    id: u64,
    line: &Line,
    task: Task,
    tokenizer: &Tokenizer,
    special: SpecialIds,
) -> Result<Request, String> {
    let pieces: Vec<Vec<i64>> =
        line.pieces.iter().map(|piece| ids_of(piece, tokenizer)).collect::<Result<_, _>>()?;
    let prompt = match (line.infills, pieces.as_slice()) {
        (true, [] | [_]) => return Err("the text has no gap; mark at least one".to_owned()),
        (true, pieces) => Prompt::infilling(id, pieces, special),
        (false, pieces) => match task {
            Task::Star => Prompt::seq2seq(id, &pieces.concat(), special),
            Task::Text => Prompt::continuation(id, &pieces.concat(), special),
        },
    };
    Ok(Request { prompt: Prompt { max_length: line.max_length, ..prompt }, infills: line.infills })
}

fn ids_of(piece: &Tokens, tokenizer: &Tokenizer) -> Result<Vec<i64>, String> {
    let ids = match piece {
        Tokens::Text(text) => tokenizer.encode(text).map_err(|error| error.to_string())?,
        Tokens::Ids(ids) => ids.clone(),
    };
    let vocabulary = tokenizer.vocab_size();
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(format!("token {id} is not in the vocabulary of {vocabulary}")),
        None => Ok(ids.into_iter().map(i64::from).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { cls: 1, bos: 4, pad: 0, mask: 2 };

    fn of_file(
        name: &str,
        content: &str,
        task: Task,
        blank: Option<&str>,
    ) -> Result<Vec<Request>, RequestError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let source = match blank {
            Some(blank) => Source::Infill { path: &path, blank },
            None => Source::Prompts(&path),
        };
        requests(source, task, &Tokenizer::numbers(20), SPECIAL)
    }

    #[test]
    fn prompts_stand_before_bos_in_tasks_with_answers_and_behind_it_in_texts() {
        let star = of_file("a.txt", "3 4\n5", Task::Star, None).unwrap();
        assert_eq!(star[0].prompt.tokens, [1, 10, 11, 4]);
        assert_eq!((star[1].prompt.id, star[1].prompt.tokens.as_slice()), (1, &[1, 12, 4][..]));
        let text = of_file("a.txt", "3 4", Task::Text, None).unwrap();
        assert_eq!(text[0].prompt.tokens, [1, 4, 10, 11]);
    }

    #[test]
    fn gaps_are_marked_by_the_string() {
        let filled = of_file("a.txt", "3 ___ 4 ___", Task::Text, Some("___")).unwrap();
        let pieces: [&[i64]; 3] = [&[10], &[11], &[]];
        assert_eq!(filled[0].prompt, Prompt::infilling(0, &pieces, SPECIAL));
        let error = of_file("a.txt", "3 ___ 4\n5 6", Task::Text, Some("___")).unwrap_err().to_string();
        assert!(error.starts_with("line 2 of ") && error.contains("no gap"), "{error}");
    }

    #[test]
    fn json_lines_take_text_or_ids() {
        let lines = "{\"prompt\": [10, 11], \"max_length\": 7}\n{\"pieces\": [\"3\", [12], \"\"]}";
        let parsed = of_file("a.jsonl", lines, Task::Text, None).unwrap();
        assert_eq!(
            (parsed[0].prompt.tokens.as_slice(), parsed[0].prompt.max_length),
            (&[1, 4, 10, 11][..], Some(7))
        );
        assert!(parsed[1].infills && !parsed[0].infills);
        assert_eq!(parsed[1].prompt.tokens, [1, 4, 10, 12]);
    }

    #[test]
    fn what_is_no_request_is_named_by_its_line() {
        for (content, problem) in [
            ("{}", "needs one of"),
            ("{\"prompt\": \"1\", \"pieces\": []}", "needs one of"),
            ("{\"prompt\": [27]}", "token 27 is not in the vocabulary of 27"),
            ("{\"prompt\": \"x\"}", "'x' is neither"),
            ("[1]", "not a request in JSON"),
            ("{\"promt\": \"1\"}", "unknown field"),
        ] {
            let error = of_file("a.jsonl", content, Task::Text, None).unwrap_err().to_string();
            assert!(error.starts_with("line 1 of ") && error.contains(problem), "{error}");
        }
    }
}
