//! Products of f32 by vector instructions, for processors of other makers than Intel: those of the crate `gemm`, on libtorch's threads.

use std::ops::Range;

use gemm::Parallelism;

use super::small::{Matrix, Onto};
use super::split;
use crate::parallel::{self, Shared};

/// Rows or columns that a part of the result has at least.
const STRIP: usize = 32;

/// `out (+)= a b` for a [m, k], b [k, n] and out [m, n] without gaps; `mnk` are their sizes. Each thread takes a part of the result.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    [a, b]: [Matrix<f32>; 2],
    onto: Onto,
    out: &mut [f32],
    threads: usize,
) {
    assert!(a.holds(m, k) && b.holds(k, n) && m * n == out.len(), "matrices fit each other");
    let (sizes, strips) = ([m, n], [m.div_ceil(STRIP), n.div_ceil(STRIP)]);
    let parts = split(strips, threads);
    let part = |side: usize, index: usize| {
        let border = |index: usize| (strips[side] * index / parts[side] * STRIP).min(sizes[side]);
        border(index)..border(index + 1)
    };
    let out = Shared::of(out);
    parallel::for_each(parts[0] * parts[1], |task| {
        piece(part(0, task / parts[1]), part(1, task % parts[1]), [n, k], [&a, &b], onto, out);
    });
}

/// The part of the result in these rows and columns.
fn piece(
    rows: Range<usize>,
    columns: Range<usize>,
    [n, k]: [usize; 2],
    [a, b]: [&Matrix<f32>; 2],
    onto: Onto,
    out: Shared<f32>,
) {
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    let ([a_row, a_column], [b_row, b_column]) = (steps(a), steps(b));
    // SAFETY: the sizes were checked against the memory, and no other piece has these rows and columns of the result.
    unsafe {
        gemm::gemm(
            rows.len(),
            columns.len(),
            k,
            out.address(rows.start * n + columns.start, (rows.len() - 1) * n + columns.len()),
            1,
            n as isize,
            onto == Onto::Target,
            a.elements.as_ptr().offset(rows.start as isize * a_row),
            a_column,
            a_row,
            b.elements.as_ptr().offset(columns.start as isize * b_column),
            b_column,
            b_row,
            onto.factor(),
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Elements from one row and from one column to the next.
fn steps(matrix: &Matrix<f32>) -> [isize; 2] {
    let stride = matrix.stride as isize;
    if matrix.transposed { [1, stride] } else { [stride, 1] }
}
