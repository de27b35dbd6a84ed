//! Scores of all tokens in some gaps, made and used up in pieces that stay in a core's own cache.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::gemm;
use crate::gemm::small::{Matrix, Onto, SmallGemm, best_kind};
use crate::head::to_floats;
use crate::kernels::operand::{elements, with_operand};
use crate::parallel;
use crate::sample::{Leader, Noise, better, largest, sum_of_weights};

/// Gaps and tokens of a piece: with the states and the part of the matrix that it comes from, it fits a core's cache.
const TILE: [usize; 2] = [512, 512];

/// Memory for scores that have to be whole.
const WHOLE_BYTES: usize = 64 << 20;

/// Sums of weights below this are far from where one of them is cut off.
const MOST_WEIGHT: f32 = 1e30;

/// States of gaps, and the matrix that makes scores of them.
#[derive(Debug)]
pub(super) struct Scores<'a> {
    /// [M, d]
    pub(super) states: Tensor,
    /// [V, d], of the type that products take.
    pub(super) matrix: &'a Tensor,
    /// Tokens whose scores are minus infinity.
    pub(super) suppressed: &'a [i64],
}

/// Scores of some tokens in some gaps.
struct Tile<'a> {
    gaps: Range<usize>,
    tokens: Range<usize>,
    /// [gaps, tokens]
    scores: &'a mut [f32],
}

impl Tile<'_> {
    fn rows(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.gaps.clone().zip(self.scores.chunks_exact(self.tokens.len()))
    }
}

impl Scores<'_> {
    /// M.
    pub(super) fn gaps(&self) -> usize {
        self.states.size()[0] as usize
    }

    /// V.
    pub(super) fn vocabulary(&self) -> usize {
        self.matrix.size()[0] as usize
    }

    /// Gaps whose scores may be in memory at once.
    pub(super) fn most_whole(&self) -> usize {
        (WHOLE_BYTES / size_of::<f32>() / self.vocabulary()).max(1)
    }

    /// The scores of some of the gaps, [gaps, V].
    pub(super) fn whole(&self, gaps: &[i64]) -> Result<Vec<f32>> {
        let places = Tensor::f_from_slice(gaps)?.f_to_device(self.states.device())?;
        let states = self.states.f_index_select(0, &places)?;
        let picked = Scores { states, matrix: self.matrix, suppressed: self.suppressed };
        let vocabulary = self.vocabulary();
        let mut whole = vec![0.0; gaps.len() * vocabulary];
        let target = Mutex::new(&mut whole);
        picked.each_tile(|tile| {
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            for (gap, scores) in tile.rows() {
                target[gap * vocabulary..][tile.tokens.clone()].copy_from_slice(scores);
            }
        })?;
        Ok(whole)
    }

    /// ln of the sum of exponentials over each gap's tokens, [M]; exponentials are f64 if `precise`.
    pub(super) fn log_sums(&self, precise: bool) -> Result<Vec<f32>> {
        if !self.fits_tiles() {
            return self.log_sums_by_torch(precise);
        }
        let parts = self.each_tile(|tile| {
            let part = |(gap, scores)| (gap, sum_of_exponentials(scores, precise));
            tile.rows().map(part).collect::<Vec<_>>()
        })?;
        let mut sums = vec![(f32::NEG_INFINITY, 0.0); self.gaps()];
        for (gap, part) in parts.into_iter().flatten() {
            sums[gap] = merge(sums[gap], part);
        }
        Ok(sums.into_iter().map(|(top, sum)| (f64::from(top) + sum.ln()) as f32).collect())
    }

    fn log_sums_by_torch(&self, precise: bool) -> Result<Vec<f32>> {
        let mut sums = Vec::with_capacity(self.gaps());
        for gaps in pieces(self.gaps(), self.most_whole()) {
            let scores = self.by_torch(gaps)?;
            let scores = if precise { scores.f_to_kind(Kind::Double)? } else { scores };
            sums.extend(to_floats(&scores.f_logsumexp(1, false)?)?);
        }
        Ok(sums)
    }

    /// The entry that a draw from the softmax over the gaps of a row, taken together, chooses: for each of `rows`, with a
    /// stream each, that cover all gaps in order. Places are counted from the row's first gap, gap by gap.
    pub(super) fn draw_jointly(
        &self,
        rows: &[Range<usize>],
        streams: &[ChaCha8Rng],
    ) -> Result<Vec<Option<Leader>>> {
        let vocabulary = self.vocabulary();
        let leaders: Vec<Mutex<Option<Leader>>> = rows.iter().map(|_| Mutex::new(None)).collect();
        let lock = |row: usize| leaders[row].lock().unwrap_or_else(PoisonError::into_inner);
        self.each_tile(|tile| {
            let first = rows.partition_point(|row| row.end <= tile.gaps.start);
            for (index, row) in rows.iter().enumerate().skip(first) {
                if row.start >= tile.gaps.end {
                    break;
                }
                let (mut leader, mut noise) = (*lock(index), Noise::new(streams[index].clone()));
                let gaps = tile.rows().filter(|(gap, _)| row.contains(gap));
                for (gap, scores) in gaps {
                    let place = (gap - row.start) * vocabulary + tile.tokens.start;
                    noise.compete(place as u64, scores, &mut leader);
                }
                let mut shared = lock(index);
                *shared = better(*shared, leader);
            }
        })?;
        Ok((0..rows.len()).map(|row| *lock(row)).collect())
    }

    /// Calls `visit` with tiles that cover all scores, on all threads; results are in the order of tiles.
    fn each_tile<R: Send>(&self, visit: impl Fn(Tile) -> R + Sync) -> Result<Vec<R>> {
        if !self.fits_tiles() {
            return self.each_block(visit);
        }
        let states = &self.states;
        let (gaps, vocabulary, width) = (self.gaps(), self.vocabulary(), states.size()[1] as usize);
        let tiles: Vec<_> = pieces(gaps, TILE[0])
            .flat_map(|gaps| pieces(vocabulary, TILE[1]).map(move |tokens| (gaps.clone(), tokens)))
            .collect();
        let mut results: Vec<Option<R>> = tiles.iter().map(|_| None).collect();
        let suppressed = self.suppressed;
        let spare = Mutex::new(Vec::new());
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        with_operand!(self.matrix.kind(), T => {
            let (states, matrix) = (elements::<T>(states), elements::<T>(self.matrix));
            let items = tiles.into_iter().zip(&mut results).collect();
            parallel::for_each_item(items, |((gaps, tokens), result): ((Range<usize>, Range<usize>), &mut Option<R>)| {
                let mut buffer = spare().pop().unwrap_or_else(|| vec![0.0; TILE[0] * TILE[1]]);
                let scores = &mut buffer[..gaps.len() * tokens.len()];
                let a = Matrix::new(&states[gaps.start * width..], width);
                let b = Matrix::new(&matrix[tokens.start * width..], width).transposed();
                T::product([gaps.len(), tokens.len(), width], [a, b], Onto::Nothing, scores);
                suppress(suppressed, &tokens, scores);
                *result = Some(visit(Tile { gaps, tokens, scores }));
                spare().push(buffer);
            });
        });
        Ok(results.into_iter().flatten().collect())
    }

    /// Whether a core can take the products of a tile by itself.
    fn fits_tiles(&self) -> bool {
        let kind = self.matrix.kind();
        self.matrix.device() == Device::Cpu && best_kind(kind) == kind
    }

    /// As [`Self::each_tile`] with scores of libtorch's making: all tokens of as many gaps as may be in memory.
    fn each_block<R>(&self, visit: impl Fn(Tile) -> R) -> Result<Vec<R>> {
        pieces(self.gaps(), self.most_whole())
            .map(|gaps| {
                let mut scores = to_floats(&self.by_torch(gaps.clone())?.f_view([-1])?)?;
                Ok(visit(Tile { gaps, tokens: 0..self.vocabulary(), scores: &mut scores }))
            })
            .collect()
    }

    /// The scores [gaps, V] on the matrix's device.
    fn by_torch(&self, gaps: Range<usize>) -> Result<Tensor> {
        let states = self.states.f_narrow(0, gaps.start as i64, gaps.len() as i64)?;
        let mut scores = gemm::linear(&states, self.matrix)?;
        if !self.suppressed.is_empty() {
            let suppressed = Tensor::f_from_slice(self.suppressed)?.f_to_device(scores.device())?;
            let _ = scores.f_index_fill_(1, &suppressed, f64::NEG_INFINITY)?;
        }
        Ok(scores)
    }
}

/// Closes the suppressed tokens of scores [gaps, tokens].
fn suppress(suppressed: &[i64], tokens: &Range<usize>, scores: &mut [f32]) {
    for token in suppressed.iter().map(|&token| token as usize).filter(|token| tokens.contains(token)) {
        let column = scores.iter_mut().skip(token - tokens.start).step_by(tokens.len());
        column.for_each(|score| *score = f32::NEG_INFINITY);
    }
}

/// `0..len` in pieces of `size`.
fn pieces(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

/// A score, and the sum of exponentials of the differences to it; minus infinity and 0 if all are closed.
fn sum_of_exponentials(scores: &[f32], precise: bool) -> (f32, f64) {
    // most scores lie close enough to any of them, which saves the search for the largest
    if let Some(&first) = scores.first().filter(|first| first.is_finite() && !precise) {
        let sum = sum_of_weights(scores, first);
        if sum < MOST_WEIGHT {
            return (first, f64::from(sum));
        }
    }
    let top = largest(scores);
    if top == f32::NEG_INFINITY {
        return (top, 0.0);
    }
    if precise {
        let weights = scores.iter().map(|&score| (f64::from(score) - f64::from(top)).exp());
        return (top, weights.filter(|weight| !weight.is_nan()).sum());
    }
    (top, f64::from(sum_of_weights(scores, top)))
}

/// The sum of two of these.
fn merge(one: (f32, f64), other: (f32, f64)) -> (f32, f64) {
    let top = one.0.max(other.0);
    let scaled = |(own, sum): (f32, f64)| if sum == 0.0 { 0.0 } else { sum * f64::from(own - top).exp() };
    (top, scaled(one) + scaled(other))
}
