//! A packed batch as text: what is visible, what every gap should receive, and whether the numbers look right.

use std::{fmt::Write, ops::Range};

use crate::{batch::PackedBatch, tokenizer::Tokenizer};

/// How much of a batch is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescribeOptions {
    /// Most rows; they are taken evenly over the batch, from the shortest to the longest.
    pub rows: usize,
    /// Most visible tokens of a row; of longer rows the middle is left out.
    pub tokens: usize,
    /// Most ids of a gap.
    pub gap_ids: usize,
    /// Mark gaps and prompts with terminal colours.
    pub color: bool,
}

impl Default for DescribeOptions {
    fn default() -> Self {
        Self { rows: 6, tokens: 60, gap_ids: 8, color: false }
    }
}

/// Describes a batch in a few lines for a person: totals, then rows such as
///
/// ```text
/// row 0 of 32: sample 17, epoch 0, position 5: 5 visible, 3 dropped in 2 gaps
///   [CLS] [BOS] [+2: "brown" "the"] fox jumps [+1: "over"] it
/// ```
///
/// A gap's ids have no order. Prompts stand in `prompt{..}`; nothing is ever dropped there.
pub fn describe_batch(batch: &PackedBatch, tokenizer: &Tokenizer, options: &DescribeOptions) -> String {
    let mut text = totals(batch);
    let rows = batch.rows();
    let shown = rows.min(options.rows);
    let describer = Describer { batch, tokenizer, options };
    for index in 0..shown {
        let row = if shown > 1 { index * (rows - 1) / (shown - 1) } else { 0 };
        text.push('\n');
        text += &describer.row(row);
    }
    if shown < rows {
        let _ = write!(text, "\n({} more rows)", rows - shown);
    }
    text
}

fn totals(batch: &PackedBatch) -> String {
    let drops: Vec<i64> = (0..batch.rows()).map(|row| batch.n_drops(row)).collect();
    let dropped: i64 = drops.iter().sum();
    let specials = 2 * batch.rows();
    let prompts = batch.token_types().iter().filter(|&&kind| kind == 1).count();
    let source = dropped + (batch.visible().saturating_sub(specials + prompts)) as i64;
    let lengths = || (0..batch.rows()).map(|row| batch.row(row).len());
    format!(
        "{} rows of {} to {} visible tokens, {} in all ({specials} of them CLS and BOS, {prompts} of prompts); {dropped} of \
         {source} source tokens dropped ({:.0} %) in {} gaps; {} rows lost nothing",
        batch.rows(),
        lengths().min().unwrap_or(0),
        lengths().max().unwrap_or(0),
        batch.visible(),
        100.0 * dropped as f64 / source.max(1) as f64,
        gaps(batch, 0..batch.visible()),
        drops.iter().filter(|&&drops| drops == 0).count(),
    )
}

/// Gaps that lost something.
fn gaps(batch: &PackedBatch, tokens: Range<usize>) -> usize {
    tokens.filter(|&token| !batch.gap(token).is_empty()).count()
}

struct Describer<'a> {
    batch: &'a PackedBatch,
    tokenizer: &'a Tokenizer,
    options: &'a DescribeOptions,
}

impl Describer<'_> {
    fn row(&self, row: usize) -> String {
        let (batch, tokens) = (self.batch, self.batch.row(row));
        let key = batch.samples()[row];
        let mut text = format!(
            "row {row} of {}: sample {}, epoch {}, position {}: {} visible, {} dropped in {} gaps\n ",
            batch.rows(),
            key.row,
            key.epoch,
            key.position,
            tokens.len(),
            batch.n_drops(row),
            gaps(batch, tokens.clone()),
        );
        if tokens.len() <= self.options.tokens {
            self.tokens(&mut text, tokens);
        } else {
            let head = tokens.start..tokens.start + self.options.tokens.div_ceil(2);
            let tail = tokens.end - self.options.tokens / 2..tokens.end;
            let middle = head.end..tail.start;
            self.tokens(&mut text, head);
            let dropped: i64 = middle.clone().map(|token| self.dropped(token)).sum();
            let _ = write!(text, " ... {} visible and {dropped} dropped tokens ...", middle.len());
            self.tokens(&mut text, tail);
        }
        text
    }

    /// Tokens in stretches that no gap, no special token and no end of a prompt interrupts.
    fn tokens(&self, text: &mut String, tokens: Range<usize>) {
        let kinds = self.batch.token_types();
        let special = self.tokenizer.special();
        let alone =
            |token: usize| [special.cls, special.bos].map(i64::from).contains(&self.batch.tokens()[token]);
        let mut start = tokens.start;
        for token in tokens.clone() {
            let next = token + 1;
            let goes_on = next < tokens.end
                && self.batch.gap(token).is_empty()
                && kinds[token] == kinds[next]
                && !alone(token)
                && !alone(next);
            if !goes_on {
                let stretch = self.decode(&self.batch.tokens()[start..next]);
                if kinds[token] == 1 {
                    self.push(text, &format!("prompt{{{stretch}}}"), "36");
                } else {
                    self.push(text, &stretch, "");
                }
                self.gap(text, token);
                start = next;
            }
        }
    }

    fn gap(&self, text: &mut String, token: usize) {
        let entries = self.batch.gap(token);
        if entries.is_empty() {
            return;
        }
        let mut gap = format!("[+{}:", self.dropped(token));
        for entry in entries.clone().take(self.options.gap_ids) {
            let _ = write!(gap, " \"{}\"", self.decode(&self.batch.tgt_ids()[entry..=entry]));
            let count = self.batch.tgt_counts()[entry];
            if count > 1 {
                let _ = write!(gap, " x{count}");
            }
        }
        if entries.len() > self.options.gap_ids {
            let _ = write!(gap, " and {} other ids", entries.len() - self.options.gap_ids);
        }
        gap.push(']');
        self.push(text, &gap, "32");
    }

    /// Tokens dropped right of a visible one.
    fn dropped(&self, token: usize) -> i64 {
        self.batch.tgt_counts()[self.batch.gap(token)].iter().sum()
    }

    /// The text of ids on one line; ids without a text are shown as numbers.
    fn decode(&self, ids: &[i64]) -> String {
        let known: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let decoded = self.tokenizer.decode(&known, false);
        if decoded.is_empty() {
            return ids.iter().map(|id| format!("#{id}")).collect::<Vec<_>>().join(" ");
        }
        let mut line = String::with_capacity(decoded.len());
        for letter in decoded.chars() {
            if letter.is_control() { line.extend(letter.escape_default()) } else { line.push(letter) }
        }
        line
    }

    /// Appends a piece, parted from the one before by white space, in a colour of the terminal (none: as it is).
    fn push(&self, text: &mut String, piece: &str, color: &str) {
        if !piece.starts_with(char::is_whitespace) {
            text.push(' ');
        }
        if self.options.color && !color.is_empty() {
            let _ = write!(text, "\x1b[{color}m{piece}\x1b[0m");
        } else {
            *text += piece;
        }
    }
}
