//! Where the next token of a row goes, and which one it is.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;

use super::scores::Scores;
use crate::config::PredictorConfig;
use crate::error::Result;
use crate::parallel;
use crate::random::{Purpose, keyed_rng};
use crate::sample::{Draws, Method};

/// Draws the insertions of one step.
pub(super) struct Chooser<'a> {
    pub(super) config: &'a PredictorConfig,
    pub(super) seed: u64,
    pub(super) step: u64,
}

/// Index among a row's open gaps, and the token; none if every token is suppressed.
type Choice = Option<(usize, i64)>;

impl Chooser<'_> {
    /// A choice for each row, from the scores of the open gaps of all rows; row `r` has `widths[r]` open gaps and the id
    /// `ids[r]`, which keys its draws.
    pub(super) fn choose(&self, scores: &Scores, widths: &[usize], ids: &[u64]) -> Result<Vec<Choice>> {
        let rows: Vec<Range<usize>> = spans(widths).collect();
        let streams = ids.iter().map(|&id| keyed_rng(self.seed, Purpose::Predict, id, self.step)).collect();
        let PredictorConfig { sampling_method, top, p, second_top, second_p, .. } = *self.config;
        let token = Method::new(sampling_method, top, p);
        match self.config.second_sampling_method {
            None => jointly(scores, &rows, streams, token),
            Some(second) => {
                let gap = Method::new(second, second_top, second_p);
                position_first(scores, &rows, streams, [gap, token], self.config.use_high_precision)
            }
        }
    }
}

/// One draw over gaps x vocabulary.
fn jointly(
    scores: &Scores,
    rows: &[Range<usize>],
    streams: Vec<ChaCha8Rng>,
    method: Method,
) -> Result<Vec<Choice>> {
    let vocabulary = scores.vocabulary();
    let split = |place: usize| (place / vocabulary, (place % vocabulary) as i64);
    if method == Method::Plain {
        let leaders = scores.draw_jointly(rows, &streams)?;
        return Ok(leaders.into_iter().map(|leader| Some(split(leader?.place as usize))).collect());
    }
    let mut draws: Vec<Draws> = streams.into_iter().map(Draws::new).collect();
    let drawn = draw_each(scores, rows, method, &mut draws)?;
    Ok(drawn.into_iter().map(|place| place.map(split)).collect())
}

/// A gap by the log of the sum over its tokens, whose exponentials are f64 if `precise`, then a token there.
fn position_first(
    scores: &Scores,
    rows: &[Range<usize>],
    streams: Vec<ChaCha8Rng>,
    [gap, token]: [Method; 2],
    precise: bool,
) -> Result<Vec<Choice>> {
    let sums = scores.log_sums(precise)?;
    let mut draws: Vec<Draws> = streams.into_iter().map(Draws::new).collect();
    let gaps: Vec<Option<usize>> =
        rows.iter().zip(&mut draws).map(|(row, draws)| draws.draw(gap, &sums[row.clone()])).collect();
    let chosen: Vec<Range<usize>> = (rows.iter().zip(&gaps))
        .map(|(row, gap)| gap.map_or(0..0, |gap| row.start + gap..row.start + gap + 1))
        .collect();
    let tokens = draw_each(scores, &chosen, token, &mut draws)?;
    Ok(gaps.into_iter().zip(tokens).map(|(gap, token)| Some((gap?, token? as i64))).collect())
}

/// A draw from the scores of each row's gaps, taken together; as many rows at once as may be in memory.
fn draw_each(
    scores: &Scores,
    rows: &[Range<usize>],
    method: Method,
    draws: &mut [Draws],
) -> Result<Vec<Option<usize>>> {
    let mut drawn = vec![None; rows.len()];
    let mut done = 0;
    while done < rows.len() {
        let mut gaps = 0;
        let fits = |row: &&Range<usize>| {
            gaps += row.len();
            gaps <= scores.most_whole()
        };
        let group = done..done + rows[done..].iter().take_while(fits).count().max(1);
        let gaps: Vec<i64> = rows[group.clone()].iter().cloned().flatten().map(|gap| gap as i64).collect();
        let whole = scores.whole(&gaps)?;
        let mut rest = whole.as_slice();
        let mut items = Vec::new();
        for ((row, draws), drawn) in
            rows[group.clone()].iter().zip(&mut draws[group.clone()]).zip(&mut drawn[group.clone()])
        {
            let (scores, after) = rest.split_at(row.len() * scores.vocabulary());
            items.push((scores, draws, drawn));
            rest = after;
        }
        parallel::for_each_item(items, |(scores, draws, drawn): (&[f32], &mut Draws, &mut Option<usize>)| {
            *drawn = draws.draw(method, scores);
        });
        done = group.end;
    }
    Ok(drawn)
}

/// The gaps of each row, of all rows' end to end.
fn spans(widths: &[usize]) -> impl Iterator<Item = Range<usize>> {
    widths.iter().scan(0, |next, width| {
        let start = *next;
        *next += width;
        Some(start..*next)
    })
}
