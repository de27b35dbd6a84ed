//! What the ranks write, put back together into whole lines: rank 0 as it is, the others behind a prefix, and the
//! last lines of each remembered for the report.

use crate::event::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

/// Lines remembered for each rank.
const LAST_LINES: usize = 20;

/// A line that does not end is shown in parts of about this many bytes.
const LONGEST_LINE: usize = 1 << 20;

/// Writes a line to standard error; that nobody reads it any more is no reason to end differently.
pub fn complain(line: fmt::Arguments<'_>) {
    // In one piece, as the ranks write to the same place.
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// The output of all ranks; `O` and `E` are where it goes, the terminal's two streams.
#[derive(Debug)]
pub struct Output<O, E> {
    out: O,
    err: E,
    ranks: Vec<RankOutput>,
}

#[derive(Debug, Clone, Default)]
struct RankOutput {
    /// The beginning of a line on standard output, on standard error.
    begun: [Vec<u8>; 2],
    last: VecDeque<Vec<u8>>,
}

impl<O: Write, E: Write> Output<O, E> {
    /// Output of `ranks` ranks.
    pub fn new(ranks: usize, out: O, err: E) -> Self {
        Self { out, err, ranks: vec![RankOutput::default(); ranks] }
    }

    /// Takes a piece of a line of `rank` and shows the line once it is whole.
    pub fn piece(&mut self, rank: usize, stream: Stream, piece: &[u8], ends_line: bool) {
        let Some(output) = self.ranks.get_mut(rank) else { return };
        let begun = &mut output.begun[stream as usize];
        begun.extend(piece);
        if ends_line || begun.len() >= LONGEST_LINE {
            let line = std::mem::take(begun);
            self.show(rank, stream, line);
        }
    }

    /// Shows the line that `rank` left without an end.
    pub fn finish(&mut self, rank: usize) {
        for stream in [Stream::Out, Stream::Err] {
            let Some(output) = self.ranks.get_mut(rank) else { return };
            let line = std::mem::take(&mut output.begun[stream as usize]);
            if !line.is_empty() {
                self.show(rank, stream, line);
            }
        }
    }

    /// The last lines of `rank`, oldest first, invalid UTF-8 replaced.
    pub fn last_lines(&self, rank: usize) -> Vec<String> {
        let lines = self.ranks.get(rank).into_iter().flat_map(|output| &output.last);
        lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    fn show(&mut self, rank: usize, stream: Stream, mut line: Vec<u8>) {
        line.push(b'\n');
        if rank > 0 {
            line.splice(0..0, format!("[rank {rank}] ").into_bytes());
        }
        // A closed terminal is no reason to end a training run; the logs have the lines.
        let _ = match stream {
            Stream::Out => self.out.write_all(&line).and_then(|()| self.out.flush()),
            Stream::Err => self.err.write_all(&line).and_then(|()| self.err.flush()),
        };
        line.pop();
        let last = &mut self.ranks[rank].last;
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole_and_only_other_ranks_have_a_prefix() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut output = Output::new(2, &mut out, &mut err);
        output.piece(1, Stream::Out, b"one ", false);
        output.piece(0, Stream::Out, b"zero", true);
        output.piece(1, Stream::Err, b"warning", true);
        output.piece(1, Stream::Out, b"line", true);
        output.piece(0, Stream::Err, b"no newline", false);
        output.finish(0);
        output.finish(0);
        output.piece(7, Stream::Out, b"no such rank", true);
        assert_eq!(String::from_utf8(out).unwrap(), "zero\n[rank 1] one line\n");
        assert_eq!(String::from_utf8(err).unwrap(), "[rank 1] warning\nno newline\n");
    }

    #[test]
    fn the_last_lines_are_kept() {
        let mut output = Output::new(1, Vec::new(), Vec::new());
        for line in 0..100 {
            output.piece(0, Stream::Err, line.to_string().as_bytes(), true);
        }
        let last: Vec<String> = (80..100).map(|line| line.to_string()).collect();
        assert_eq!(output.last_lines(0), last);
    }
}
