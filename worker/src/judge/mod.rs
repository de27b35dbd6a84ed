//! Texts judged by another language model, shared by all ranks.

mod open;
mod texts;
mod verdict;

use std::collections::BTreeSet;

use ilm_model::judge::Judge;
use ilm_model::metrics::JudgeScore;

pub use self::open::{Folder, FolderError};
pub use self::texts::{Text, texts};
pub use self::verdict::{Summary, Verdict};
use crate::comm::{Buffer, Collectives, ReduceOp};
use crate::partial::PartialFile;
use crate::signals::StopRequest;

/// What all ranks have found.
#[derive(Debug)]
pub struct Judged {
    /// On rank 0 every new verdict with its text's number; none on others.
    pub verdicts: Vec<(u64, Verdict)>,
    /// Whether that is all that was asked for; no rank was stopped.
    pub complete: bool,
}

/// Judges the texts that are not `done`, each on one rank, in batches of texts of similar length that have up to `most_tokens`
/// tokens when all are as long as the longest. `file` gets this rank's verdicts as they are found.
///
/// # Errors
/// Texts that the judge cannot read, figures that are no numbers, failing collectives, a disk that refuses.
pub fn judge(
    (folder, judge): (&Folder, &Judge),
    (texts, done): (&[Text], &BTreeSet<u64>),
    most_tokens: usize,
    file: &mut PartialFile<Verdict>,
    stop: &StopRequest,
    comm: &mut dyn Collectives,
) -> anyhow::Result<Judged> {
    let mut wanted: Vec<usize> = (0..texts.len()).filter(|&at| !done.contains(&(at as u64))).collect();
    wanted.sort_by_key(|&at| std::cmp::Reverse(texts[at].tokens.len()));
    let mut mine: Vec<(u64, Verdict)> = Vec::new();
    for batch in batches(&wanted, texts, most_tokens).skip(comm.rank()).step_by(comm.world_size()) {
        let tokens: Vec<&[i64]> = batch.iter().map(|&at| texts[at].tokens.as_slice()).collect();
        let found = judge.log_likelihoods_unless(&|| stop.is_set(), &tokens);
        let Some(found) = found.map_err(|error| folder.blame(error.into()))? else { break };
        for (&at, found) in batch.iter().zip(&found) {
            let score = JudgeScore::new(&texts[at].tokens, found)?;
            if score.is_some_and(|score| !(score.nll.is_finite() && score.perplexity.is_finite())) {
                let text = at + 1;
                return Err(folder
                    .unusable(format!("what it finds of text {text} is no finite number"))
                    .into());
            }
            let verdict = Verdict { score };
            file.append(at as u64, &texts[at].text, &verdict)?;
            mine.push((at as u64, verdict));
        }
    }
    let all = comm.all_gather("verdicts", &serde_json::to_vec(&mine)?)?;
    let mut finished = [mine.len() as f64];
    comm.all_reduce("judged texts", ReduceOp::Sum, Buffer::F64(&mut finished))?;
    let mut verdicts = Vec::new();
    if comm.rank() == 0 {
        for part in &all {
            verdicts.extend(serde_json::from_slice::<Vec<(u64, Verdict)>>(part)?);
        }
    }
    Ok(Judged { verdicts, complete: finished == [wanted.len() as f64] })
}

/// Consecutive texts, the longest of each batch first; a longer text than `most_tokens` is a batch of its own.
fn batches<'a>(
    wanted: &'a [usize],
    texts: &'a [Text],
    most_tokens: usize,
) -> impl Iterator<Item = &'a [usize]> {
    let mut rest = wanted;
    std::iter::from_fn(move || {
        let longest = texts[*rest.first()?].tokens.len().max(1);
        let (batch, others) = rest.split_at(rest.len().min((most_tokens / longest).max(1)));
        rest = others;
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_many_texts_as_its_longest_allows() {
        let text = |length: usize| Text { tokens: vec![1; length], ..Text::default() };
        let texts: Vec<Text> = [30, 10, 9, 9, 4, 0, 0].map(text).into();
        let wanted: Vec<usize> = (0..texts.len()).collect();
        let found: Vec<&[usize]> = batches(&wanted, &texts, 20).collect();
        assert_eq!(found, [&[0][..], &[1, 2], &[3, 4], &[5, 6]]);
    }
}
