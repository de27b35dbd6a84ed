//! What became of a prompt, and how it came about.

use super::prompt::{Prompt, SpecialIds};

/// Token type of inserted tokens.
pub(super) const INSERTED: i64 = 2;

/// One step of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insertion {
    /// The new token.
    pub token: i64,
    /// Its index in the row after the step.
    pub index: usize,
}

/// A state of a row on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The step that led here, counted from 1. The start carries 1 as well, as in the reference.
    pub step: usize,
    /// Tokens in text order.
    pub tokens: Vec<i64>,
}

/// What became of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// The prompt's id.
    pub id: u64,
    /// Tokens in text order, without padding and masks that were inserted (if the settings let them be).
    pub tokens: Vec<i64>,
    /// Their types; inserted tokens have 2.
    pub token_types: Vec<i64>,
    /// The steps in the order of arrival: replayed on the prompt they give the row, padding and masks included.
    pub insertions: Vec<Insertion>,
    /// The start and the row after every step, if the settings ask for it.
    pub history: Vec<HistoryEntry>,
}

impl Prediction {
    /// What was inserted in each gap of the prompt: the tokens between its token `n` and the next one at index `n`, as far as
    /// they are text.
    pub fn fillings(&self, prompt: &Prompt, special: SpecialIds) -> Vec<Vec<i64>> {
        let mut row = start(prompt);
        self.insertions.iter().for_each(|step| apply(&mut row, step));
        let mut fillings = vec![Vec::new(); prompt.tokens.len()];
        for place in row {
            if place.inserted && !special.is_blank(place.token) {
                fillings[place.gap].push(place.token);
            }
        }
        fillings
    }
}

impl SpecialIds {
    /// Whether a token is taken out of the result.
    pub(super) fn is_blank(self, token: i64) -> bool {
        token == self.pad || token == self.mask
    }
}

/// A token of a row and where it is from.
#[derive(Debug, Clone, Copy)]
struct Place {
    token: i64,
    inserted: bool,
    /// The token of the prompt that it is or that it was inserted behind.
    gap: usize,
}

/// The row before the first step.
fn start(prompt: &Prompt) -> Vec<Place> {
    let places = prompt.tokens.iter().enumerate();
    places.map(|(gap, &token)| Place { token, inserted: false, gap }).collect()
}

/// A step that does not fit the row, from another prompt perhaps, goes to the nearest place that there is.
fn apply(row: &mut Vec<Place>, step: &Insertion) {
    let index = step.index.clamp(1.min(row.len()), row.len());
    let gap = row[..index].last().map_or(0, |before| before.gap);
    row.insert(index, Place { token: step.token, inserted: true, gap });
}

/// The row after 0, 1, .. steps.
pub(super) fn history(prompt: &Prompt, insertions: &[Insertion], special: SpecialIds) -> Vec<HistoryEntry> {
    let text = |row: &[Place]| {
        let kept = row.iter().filter(|place| !(place.inserted && special.is_blank(place.token)));
        kept.map(|place| place.token).collect()
    };
    let mut row = start(prompt);
    let mut entries = vec![HistoryEntry { step: 1, tokens: text(&row) }];
    for (number, step) in (1..).zip(insertions) {
        apply(&mut row, step);
        entries.push(HistoryEntry { step: number, tokens: text(&row) });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { cls: 1, bos: 4, pad: 0, mask: 2 };

    fn prediction() -> (Prompt, Prediction) {
        let pieces: [&[i64]; 3] = [&[], &[9, 9], &[]];
        let prompt = Prompt::infilling(5, &pieces, SPECIAL);
        // 1 4 9 9 -> 1 4 9 9 8 -> 1 4 9 9 9 8 (the new 9 behind the given ones) -> 1 4 0 9 9 9 8
        let insertions = vec![
            Insertion { token: 8, index: 4 },
            Insertion { token: 9, index: 4 },
            Insertion { token: 0, index: 2 },
        ];
        let tokens = vec![1, 4, 9, 9, 9, 8];
        let prediction =
            Prediction { id: 5, tokens, token_types: vec![0, 2, 1, 1, 2, 2], insertions, history: vec![] };
        (prompt, prediction)
    }

    #[test]
    fn fillings_are_told_from_equal_tokens_around_them() {
        let (prompt, prediction) = prediction();
        let expected: [&[i64]; 4] = [&[], &[], &[], &[9, 8]];
        assert_eq!(prediction.fillings(&prompt, SPECIAL), expected);
    }

    #[test]
    fn history_counts_the_start_and_the_first_step_as_one() {
        let (prompt, prediction) = prediction();
        let entries = history(&prompt, &prediction.insertions, SPECIAL);
        assert_eq!(entries.iter().map(|entry| entry.step).collect::<Vec<_>>(), [1, 1, 2, 3]);
        assert_eq!(entries[0].tokens, prompt.tokens);
        assert_eq!(entries[2].tokens, prediction.tokens);
        assert_eq!(entries[3].tokens, prediction.tokens, "padding is no text");
    }
}
