//! Operands laid out for the matrix unit: strips of 32 rows of the left one or columns of the right one, step by step of the inner
//! dimension, with zeros where they end.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_load_si512, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
    _mm512_permutex2var_epi16, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_store_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

use half::bf16;

use super::super::small::Matrix;
use super::tile::{DEPTH, LANES, Row, STEP_ROWS, STRIP};

/// Which operand a strip is for. A row of a tile is of one lane in the left one, and of two steps of the inner dimension in the
/// right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// An operand in memory: `lanes` rows (of the left one) or columns (of the right one) by `inner`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    elements: &'a [bf16],
    stride: usize,
    /// Whether the inner dimension is the one whose elements lie side by side.
    inner_is_dense: bool,
    lanes: usize,
    inner: usize,
    side: Side,
}

impl<'a> Source<'a> {
    /// The left operand [lanes, inner], or the right one [inner, lanes].
    pub(super) fn new(matrix: Matrix<'a, bf16>, [lanes, inner]: [usize; 2], side: Side) -> Self {
        let (rows, columns) = if side == Side::Left { (lanes, inner) } else { (inner, lanes) };
        assert!(matrix.holds(rows, columns), "an operand lies inside its memory");
        let inner_is_dense = matrix.transposed == (side == Side::Right);
        Self { elements: matrix.elements, stride: matrix.stride, inner_is_dense, lanes, inner, side }
    }

    /// Strips of the whole operand.
    pub(super) fn strips(&self) -> usize {
        self.lanes.div_ceil(STRIP)
    }

    /// Lays out the strips of that range for the steps of that range, one strip behind the other.
    pub(super) fn pack(&self, strips: Range<usize>, steps: Range<usize>, to: &mut [Row]) {
        assert!(strips.end <= self.strips() && steps.end <= self.inner.div_ceil(DEPTH));
        assert_eq!(to.len(), strips.len() * steps.len() * STEP_ROWS);
        // SAFETY: the matrix unit is only there beside these vectors; see `Unit::get`.
        unsafe { self.pack_by_vectors(strips, steps, to) }
    }

    /// Asks memory for some of the lines that a strip will be laid out from soon: from a step on, so many steps.
    #[inline(always)]
    pub(super) fn ask_for(&self, (strip, step): (usize, usize), steps: usize, lines: Range<usize>) {
        let (lane, inner) = (strip * STRIP, step * DEPTH);
        let at = |row: usize, column: usize| self.elements.as_ptr().wrapping_add(row * self.stride + column);
        if !self.inner_is_dense {
            return lines.for_each(|line| ask_for_line(at(inner + line, lane)));
        }
        // Counted on, as a division for every line takes as long as a part of the product.
        let (mut row, mut step) = (lines.start / steps, lines.start % steps);
        for _ in lines {
            ask_for_line(at(lane + row, inner + step * DEPTH));
            step += 1;
            if step == steps {
                (row, step) = (row + 1, 0);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn pack_by_vectors(&self, strips: Range<usize>, steps: Range<usize>, to: &mut [Row]) {
        let strip_rows = steps.len() * STEP_ROWS;
        let mut tiles = |strip: usize, step: usize| {
            let at = (strip - strips.start) * strip_rows + (step - steps.start) * STEP_ROWS;
            let to = (&mut to[at..][..STEP_ROWS]).try_into().expect("as many rows");
            self.tiles(strip * STRIP, step * DEPTH, to);
        };
        // In the order in which the elements lie in memory.
        if self.inner_is_dense {
            strips.clone().for_each(|strip| steps.clone().for_each(|step| tiles(strip, step)));
        } else {
            steps.clone().for_each(|step| strips.clone().for_each(|strip| tiles(strip, step)));
        }
    }

    /// The two tiles that begin with this lane and this element of the inner dimension.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn tiles(&self, lane: usize, inner: usize, to: &mut [Row; STEP_ROWS]) {
        let lanes = (self.lanes - lane).min(STRIP);
        let depth = (self.inner - inner).min(DEPTH);
        match (self.inner_is_dense, lanes == STRIP && depth == DEPTH) {
            (true, true) => self.rows_of_lanes::<true>([lane, STRIP], [inner, DEPTH], to),
            (true, false) => self.rows_of_lanes::<false>([lane, lanes], [inner, depth], to),
            (false, true) => self.rows_of_pairs::<true>([lane, STRIP], [inner, DEPTH], to),
            (false, false) => self.rows_of_pairs::<false>([lane, lanes], [inner, depth], to),
        }
        if self.inner_is_dense != (self.side == Side::Left) {
            let (first, second) = to.split_at_mut(LANES);
            transpose(first.try_into().expect("half of the rows"));
            transpose(second.try_into().expect("half of the rows"));
        }
    }

    /// A row for every lane: [lane][DEPTH].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn rows_of_lanes<const WHOLE: bool>(
        &self,
        [lane, lanes]: [usize; 2],
        [inner, depth]: [usize; 2],
        to: &mut [Row; STEP_ROWS],
    ) {
        for (i, to) in to.iter_mut().enumerate() {
            let depth = if WHOLE || i < lanes { depth } else { 0 };
            to.set(self.line::<WHOLE>(lane + i, inner, depth));
        }
    }

    /// A row for every two of the inner dimension: [DEPTH / 2][lane][2], for both halves of the lanes. Every line of memory is
    /// loaded once only: where rows lie a multiple of 4 KiB apart, they do not stay in the first cache.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn rows_of_pairs<const WHOLE: bool>(
        &self,
        [lane, lanes]: [usize; 2],
        [inner, depth]: [usize; 2],
        to: &mut [Row; STEP_ROWS],
    ) {
        static ORDERS: [Row; 2] = [interleaved(0), interleaved(LANES)];
        let orders = [ORDERS[0].get(), ORDERS[1].get()];
        for pair in 0..LANES {
            let [first, second] = [2 * pair, 2 * pair + 1].map(|i| {
                let lanes = if WHOLE || i < depth { lanes } else { 0 };
                self.line::<WHOLE>(inner + i, lane, lanes)
            });
            to[pair].set(_mm512_permutex2var_epi16(first, orders[0], second));
            to[LANES + pair].set(_mm512_permutex2var_epi16(first, orders[1], second));
        }
    }

    /// `len` elements of a row of memory, from that column on, and zeros; a whole line if `WHOLE`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn line<const WHOLE: bool>(&self, row: usize, column: usize, len: usize) -> __m512i {
        let from = self.elements.as_ptr().wrapping_add(row * self.stride + column);
        if WHOLE {
            // SAFETY: the elements are the operand's, which lies in the slice.
            return unsafe { _mm512_loadu_si512(from.cast()) };
        }
        let mask = ((1_u64 << len) - 1) as u32;
        // SAFETY: as above; nothing is read where the mask is 0.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
    }
}

/// Asks memory for some of the lines from an address on.
#[inline(always)]
pub(super) fn ask_for(first: *const Row, lines: Range<usize>) {
    lines.for_each(|line| ask_for_line(first.wrapping_add(line)));
}

/// Into the core's own cache, as the first one has no room for what is not needed at once.
#[inline(always)]
fn ask_for_line<T>(at: *const T) {
    // SAFETY: harmless wherever it lies.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

impl Row {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn get(&self) -> __m512i {
        // SAFETY: a row is 64 aligned bytes.
        unsafe { _mm512_load_si512((&raw const *self).cast()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn set(&mut self, value: __m512i) {
        // SAFETY: as above.
        unsafe { _mm512_store_si512((&raw mut *self).cast(), value) }
    }
}

/// From the lane on: element 0 of the first row, of the second, element 1 of the first, ...
const fn interleaved(lane: usize) -> Row {
    let mut order = Row::ZERO;
    let mut i = 0;
    while i < DEPTH {
        order.0[i] = (lane + i / 2 + i % 2 * DEPTH) as u16;
        i += 1;
    }
    order
}

/// Transposes 16 x 16 pairs of elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn transpose(tile: &mut [Row; LANES]) {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (row, from) in rows.iter_mut().zip(&*tile) {
        *row = from.get();
    }
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Every 128 bits of `quads[4 i + j]` hold a column's elements of rows 4 i to 4 i + 3: columns j, 4 + j, 8 + j and 12 + j.
    let mut quads = pairs;
    for i in (0..LANES).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        let (low, low2) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        let (high, high2) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        tile[j].set(_mm512_shuffle_i32x4::<0x88>(low, low2));
        tile[4 + j].set(_mm512_shuffle_i32x4::<0xdd>(low, low2));
        tile[8 + j].set(_mm512_shuffle_i32x4::<0x88>(high, high2));
        tile[12 + j].set(_mm512_shuffle_i32x4::<0xdd>(high, high2));
    }
}
