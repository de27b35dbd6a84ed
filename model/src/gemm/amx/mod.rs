//! Products of bf16 on the processor's matrix unit (Intel's AMX), with sums and results in f32.
//!
//! The unit outruns every cache but the first, so the order of the loops decides. A panel of the right operand is laid out where a
//! core's own cache keeps it; against it come the rows of the left one, a strip of 32 and a few steps of the inner dimension at a
//! time, which the first cache keeps. Sums wait in the core's own cache meanwhile. Every thread lays out what it needs for its
//! part of the result, so that threads wait for each other once only. A result is always added up in the same order, however many
//! threads there are.

mod pack;
mod target;
#[cfg(test)]
mod tests;
mod tile;

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use self::pack::{Side, Source};
use self::target::{BLOCK, Dense, Target};
pub(crate) use self::tile::Unit;
use self::tile::{Block, Configured, DEPTH, Row, STEP_ROWS};
use super::small::{Matrix, Onto};
use super::split;
use crate::parallel;

/// Steps of the inner dimension that are added up before they are written: 1,536 elements.
const MOST_STEPS: usize = 48;
/// Steps that are added up in registers at a time: 16 KiB of the left operand.
const REGISTER_STEPS: usize = 8;
/// Rows of tiles of the left operand that are kept for the next panel: 4 MiB.
const LEFT_ROWS: usize = (4 << 20) / size_of::<Row>();
/// Rows of tiles of a panel of the right operand: 1 MiB, half of a core's own cache.
const PANEL_ROWS: usize = (1 << 20) / size_of::<Row>();

impl Unit {
    /// `out (+)= a b` for a [m, k], b [k, n] and out [m, n] without gaps; `mnk` are their sizes. On this thread only, or on all.
    pub(crate) fn product(
        self,
        [m, n, k]: [usize; 3],
        [a, b]: [Matrix<bf16>; 2],
        onto: Onto,
        out: &mut [f32],
        threads: usize,
    ) {
        if k == 0 && onto != Onto::Target {
            out.fill(0.0);
        }
        let job = Job {
            left: Source::new(a, [m, k], Side::Left),
            right: Source::new(b, [n, k], Side::Right),
            target: Target::new(out, [m, n]),
            steps: k.div_ceil(DEPTH),
            onto,
        };
        let strips = [job.left.strips(), job.right.strips()];
        let parts = split(strips, threads);
        let part = |side: usize, index: usize| {
            strips[side] * index / parts[side]..strips[side] * (index + 1) / parts[side]
        };
        parallel::for_each(parts[0] * parts[1], |task| {
            let [rows, columns] = [part(0, task / parts[1]), part(1, task % parts[1])];
            self.configured(|unit| job.run(unit, &rows, &columns));
        });
    }
}

#[derive(Clone, Copy)]
struct Job<'a> {
    left: Source<'a>,
    right: Source<'a>,
    target: Target,
    /// Steps of the inner dimension.
    steps: usize,
    onto: Onto,
}

/// What a thread computes in; kept, as fresh memory is dear.
#[derive(Default)]
struct Scratch {
    left: Vec<Row>,
    panel: Vec<Row>,
    /// Sums of a strip so far.
    sums: Vec<Dense>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A strip of the left operand.
struct Strip<'a> {
    row: usize,
    rows: &'a mut [Row],
    /// Whether it is still to be laid out.
    is_new: bool,
}

/// Some columns of the right operand for some steps.
struct Panel<'a> {
    columns: Range<usize>,
    steps: Range<usize>,
    /// All columns for the first few steps, then all for the next few, ...
    rows: &'a [Row],
}

impl Panel<'_> {
    /// A few steps at a time, and the columns for them.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, &[Row])> {
        let mut rest = self.rows;
        blocks(&self.steps, REGISTER_STEPS).map(move |steps| {
            let (part, others) = rest.split_at(self.columns.len() * steps.len() * STEP_ROWS);
            rest = others;
            (steps, part)
        })
    }
}

impl Job<'_> {
    /// The result's strips of these rows and columns.
    fn run(self, unit: Configured, rows: &Range<usize>, columns: &Range<usize>) {
        SCRATCH.with_borrow_mut(|Scratch { left, panel, sums }| {
            for steps in blocks(&(0..self.steps), MOST_STEPS) {
                let strip_rows = steps.len() * STEP_ROWS;
                for rows in blocks(rows, LEFT_ROWS / strip_rows) {
                    let panels = blocks(columns, PANEL_ROWS / strip_rows);
                    // A strip that is needed once only stays in the first cache.
                    let strips = if panels.len() > 1 { rows.len() } else { 1 };
                    let left = room(left, strips * strip_rows, Row::ZERO);
                    for (number, columns) in panels.enumerate() {
                        let panel = self.lay_out(columns, steps.clone(), panel);
                        let sums = room(sums, panel.columns.len() + 1, [0.0; BLOCK]);
                        for row in rows.clone() {
                            let at = (row - rows.start) % strips * strip_rows;
                            let strip =
                                Strip { row, rows: &mut left[at..][..strip_rows], is_new: number == 0 };
                            self.strip(unit, strip, &panel, sums);
                        }
                    }
                }
            }
        });
        target::end_streams();
    }

    fn lay_out<'a>(&self, columns: Range<usize>, steps: Range<usize>, to: &'a mut Vec<Row>) -> Panel<'a> {
        let rows = room(to, columns.len() * steps.len() * STEP_ROWS, Row::ZERO);
        let mut rest = &mut *rows;
        for few in blocks(&steps, REGISTER_STEPS) {
            let (part, others) = rest.split_at_mut(columns.len() * few.len() * STEP_ROWS);
            self.right.pack(columns.clone(), few, part);
            rest = others;
        }
        Panel { columns, steps, rows }
    }

    /// One strip of rows against a panel. The last of the sums is for blocks that reach beyond the result.
    #[inline(always)]
    fn strip(self, unit: Configured, strip: Strip, panel: &Panel, sums: &mut [Dense]) {
        let (edge, sums) = sums.split_last_mut().expect("one more than columns");
        let adds = self.onto == Onto::Target || panel.steps.start > 0;
        let streams = self.onto == Onto::Memory && panel.steps.end == self.steps;
        let row = strip.row;
        for (steps, rights) in panel.parts() {
            let (is_first, is_last) = (steps.start == panel.steps.start, steps.end == panel.steps.end);
            let len = steps.len() * STEP_ROWS;
            let left = &mut strip.rows[(steps.start - panel.steps.start) * STEP_ROWS..][..len];
            if strip.is_new {
                self.left.pack(row..row + 1, steps.clone(), left);
            }
            let soon = if is_last { (row + 1, panel.steps.start) } else { (row, steps.end) };
            for (index, right) in rights.chunks_exact(len).enumerate() {
                let share = len * index / panel.columns.len()..len * (index + 1) / panel.columns.len();
                if strip.is_new {
                    self.left.ask_for(soon, steps.len(), share);
                } else {
                    pack::ask_for(left.as_ptr().wrapping_add(len), share);
                }
                let place = [row, panel.columns.start + index];
                let whole = self.target.block(place);
                if whole.is_none() && is_first && adds {
                    // SAFETY: rows and columns are this task's alone.
                    unsafe { self.target.load(place, edge) };
                }
                let sum = Block::of(&mut sums[index]);
                let target = whole.unwrap_or_else(|| Block::of(edge));
                let from = if is_first { adds.then_some(target) } else { Some(sum) };
                let last = if streams { Block::of(edge) } else { target };
                let to = if is_last { last } else { sum };
                let next = if is_first && !streams { to.following() } else { sum.following() };
                // SAFETY: as above, and the sums are this thread's.
                unsafe { unit.add_product([left, right], from, to, next) };
                match whole {
                    // SAFETY: as above.
                    None if is_last => unsafe { self.target.store(place, edge) },
                    // SAFETY: as above.
                    Some(whole) if is_last && streams => unsafe { target::stream(edge, whole) },
                    _ => {}
                }
            }
        }
    }
}

/// Cuts a range into nearly equal parts of at most `most`.
fn blocks(range: &Range<usize>, most: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let (start, len) = (range.start, range.len());
    let parts = len.div_ceil(most);
    let at = move |part: usize| start + len * part / parts;
    (0..parts).map(move |part| at(part)..at(part + 1))
}

/// The first `len` elements of a buffer that grows where it must.
fn room<T: Copy>(buffer: &mut Vec<T>, len: usize, empty: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, empty);
    }
    &mut buffer[..len]
}
