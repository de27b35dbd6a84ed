//! What is to be generated: a number of texts, or a file of prompts or of texts with gaps.

use std::fs;
use std::path::{Path, PathBuf};

use data_pipeline::{Task, Tokenizer};
use ilm_model::{ModelShape, PredictorConfig, Prompt, SpecialIds};
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

/// How many tokens a text may have, CLS and BOS counted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Where insertion ends.
    longest: usize,
    /// What the model can read.
    positions: usize,
    /// Whether the first token is inserted whatever the length.
    forced: bool,
}

impl Limits {
    /// The limits of a predictor for a model of that shape.
    pub fn new(predictor: &PredictorConfig, shape: &ModelShape) -> Self {
        Self {
            longest: predictor.max_length.unwrap_or(shape.max_length as usize),
            positions: shape.positions() as usize,
            forced: predictor.force_predict_first_step,
        }
    }

    /// Refuses what would come back as it is or cut short, and what the model has no positions for.
    fn check(self, request: Request) -> Result<Request, String> {
        let Self { longest, positions, forced } = self;
        let tokens = request.prompt.tokens.len();
        let limit = request.prompt.max_length.unwrap_or(longest);
        if limit > longest {
            return Err(format!(
                "its max_length = {limit} is above the {longest} tokens of a text; lower it"
            ));
        }
        let most = if forced { positions } else { limit.saturating_sub(1) };
        if tokens > most {
            return Err(format!(
                "it has {tokens} tokens with CLS and BOS, and at most {most} leave room for an insertion; shorten it"
            ));
        }
        Ok(request)
    }
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
/// The first line that is no request, or is too long for one.
pub fn requests(
    source: Source<'_>,
    task: Task,
    tokenizer: &Tokenizer,
    special: SpecialIds,
    limits: Limits,
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
                .and_then(|request| limits.check(request))
                .map_err(|problem| RequestError::Line { path: path.to_owned(), line: index + 1, problem })
        })
        .collect()
}

fn parse_text(line: &str, source: Source<'_>) -> Line {
    let (pieces, infills) = match source {
        Source::Infill { blank, .. } => {
            let mut pieces: Vec<&str> = line.split(blank).collect();
            let last = pieces.pop();
            let pieces = pieces.into_iter().map(before_gap).chain(last);
            (pieces.map(|piece| Tokens::Text(piece.into())).collect(), true)
        }
        _ => (vec![Tokens::Text(line.into())], false),
    };
    Line { pieces, infills, max_length: None }
}

/// The piece without the space at its end, which the tokens of many vocabularies begin with: it is the gap's to fill. A piece that
/// is nothing else stays, as it parts two gaps.
fn before_gap(piece: &str) -> &str {
    piece.strip_suffix(' ').filter(|rest| !rest.is_empty()).unwrap_or(piece)
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
    use data_pipeline::SpecialTokenNames;

    const SPECIAL: SpecialIds = SpecialIds { cls: 1, bos: 4, pad: 0, mask: 2 };

    const LIMITS: Limits = Limits { longest: 20, positions: 21, forced: false };

    fn of_file(
        name: &str,
        content: &str,
        task: Task,
        blank: Option<&str>,
    ) -> Result<Vec<Request>, RequestError> {
        of_file_within(LIMITS, &Tokenizer::numbers(20), name, content, task, blank)
    }

    fn of_file_within(
        limits: Limits,
        tokenizer: &Tokenizer,
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
        requests(source, task, tokenizer, SPECIAL, limits)
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
    fn the_space_before_a_gap_is_the_gaps_where_tokens_begin_with_spaces() {
        let open = |name: &str| {
            let file = test_support::data_dir().join("tokenizers").join(name).join("tokenizer.json");
            Tokenizer::open(&file, &SpecialTokenNames::default()).unwrap()
        };
        let check = |tokenizer: &Tokenizer, line: &str, pieces: &[&str]| {
            let ids = |text: &&str| -> Vec<i64> {
                tokenizer.encode(text).unwrap().into_iter().map(i64::from).collect()
            };
            let read = of_file_within(LIMITS, tokenizer, "a.txt", line, Task::Text, Some("<blank>")).unwrap();
            let pieces: Vec<Vec<i64>> = pieces.iter().map(ids).collect();
            assert_eq!(read[0].prompt, Prompt::infilling(0, &pieces, SPECIAL), "{line}");
            let ids: Vec<u32> = read[0].prompt.tokens[2..].iter().map(|&id| id as u32).collect();
            tokenizer.decode(&ids, true)
        };
        let gpt2 = open("gpt2");
        let text = check(&gpt2, "The <blank> sat on <blank> .", &["The", " sat on", " ."]);
        assert_eq!(text, "The sat on .");
        check(&gpt2, "The  <blank>", &["The ", ""]);
        check(&gpt2, "<blank> sat ", &["", " sat "]);
        check(&gpt2, "The <blank><blank>.", &["The", "", "."]);
        check(&gpt2, " <blank> <blank> .", &[" ", " ", " ."]);
        check(&open("bert-base-uncased"), "The <blank> sat on <blank> .", &["the", "sat on", "."]);
    }

    #[test]
    fn requests_without_room_for_an_insertion_are_named_by_their_line_and_length() {
        let read = |forced: bool, name: &str, content: &str| {
            let limits = Limits { longest: 6, positions: 7, forced };
            of_file_within(limits, &Tokenizer::numbers(20), name, content, Task::Text, None)
        };
        let refused = |forced: bool, name: &str, content: &str| {
            let sentence = read(forced, name, content).unwrap_err().to_string();
            assert!(sentence.starts_with("line 2 of "), "{sentence}");
            sentence
        };
        assert_eq!(read(false, "a.txt", "1 2\n1 2 3").unwrap().len(), 2);
        let sentence = refused(false, "a.txt", "1 2\n1 2 3 4");
        assert!(sentence.contains("has 6 tokens") && sentence.contains("at most 5 leave room"), "{sentence}");
        // one token is inserted in any case, as far as the model can read the prompt
        assert_eq!(read(true, "a.txt", "1 2\n1 2 3 4 5").unwrap().len(), 2);
        let sentence = refused(true, "a.txt", "1 2\n1 2 3 4 5 6");
        assert!(sentence.contains("has 8 tokens") && sentence.contains("at most 7 leave room"), "{sentence}");

        let line = |limit: usize| format!("{{\"prompt\": []}}\n{{\"prompt\": [9], \"max_length\": {limit}}}");
        assert_eq!(read(false, "a.jsonl", &line(4)).unwrap()[1].prompt.max_length, Some(4));
        assert!(refused(false, "a.jsonl", &line(3)).contains("has 3 tokens"));
        let sentence = refused(false, "a.jsonl", &line(7));
        assert!(sentence.contains("max_length = 7 is above the 6 tokens"), "{sentence}");
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
