//! Products of small pieces of larger matrices, for one thread each.

use std::ffi::{c_char, c_int};

use half::bf16;
use tch::Kind;

use super::bf16::Products;
use super::simd;
use crate::native::{Sgemm, native};

/// The upper left part of a matrix: how much of it, the product says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(super) elements: &'a [T],
    /// Elements from one row to the next.
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

impl<'a, T> Matrix<'a, T> {
    pub(crate) fn new(elements: &'a [T], stride: usize) -> Self {
        Self { elements, stride, transposed: false }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Whether `rows` x `columns` of it, transposed or not, lie inside the memory.
    pub(super) fn holds(&self, rows: usize, columns: usize) -> bool {
        let (rows, columns) = if self.transposed { (columns, rows) } else { (rows, columns) };
        rows == 0 || columns <= self.stride && (rows - 1) * self.stride + columns <= self.elements.len()
    }
}

/// Whether a product is written over what is there or added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    Nothing,
    /// As nothing, but past the caches where it can be: for a result that is read late.
    Memory,
    Target,
}

impl Onto {
    /// What multiplies that which is there.
    pub(super) fn factor(self) -> f32 {
        match self {
            Self::Nothing | Self::Memory => 0.0,
            Self::Target => 1.0,
        }
    }
}

/// A type with such products.
pub(crate) trait SmallGemm: Sized {
    /// `out (+)= a b` for a [m, k], b [k, n] and out [m, n] without gaps; `mnk` are their sizes.
    fn product(mnk: [usize; 3], operands: [Matrix<Self>; 2], onto: Onto, out: &mut [f32]);
}

/// The type in which products of that kind are taken here.
pub(crate) fn best_kind(wanted: Kind) -> Kind {
    if wanted == Kind::BFloat16 && Products::best().is_some() { Kind::BFloat16 } else { Kind::Float }
}

impl SmallGemm for bf16 {
    fn product(mnk: [usize; 3], operands: [Matrix<Self>; 2], onto: Onto, out: &mut [f32]) {
        Products::best().expect("asked for by `best_kind`").product(mnk, operands, onto, out, 1);
    }
}

impl SmallGemm for f32 {
    fn product(mnk: [usize; 3], operands: [Matrix<Self>; 2], onto: Onto, out: &mut [f32]) {
        match native().sgemm {
            Some(gemm) => by_mkl(gemm, mnk, operands, onto, out),
            None => simd::product(mnk, operands, onto, out, 1),
        }
    }
}

fn by_mkl(gemm: Sgemm, [m, n, k]: [usize; 3], [a, b]: [Matrix<f32>; 2], onto: Onto, out: &mut [f32]) {
    assert!(a.holds(m, k) && b.holds(k, n) && m * n == out.len(), "matrices fit each other");
    let [m, n, k] = [m, n, k].map(|size| size as c_int);
    let op = |matrix: &Matrix<f32>| -> *const c_char {
        if matrix.transposed { c"T".as_ptr() } else { c"N".as_ptr() }
    };
    let (lda, ldb) = (a.stride as c_int, b.stride as c_int);
    let (alpha, beta) = (1.0, onto.factor());
    // SAFETY: the sizes were checked against the memory. Read by columns, as this interface does, the matrices are their own
    // transposes: out^T = b^T a^T.
    unsafe {
        gemm(
            op(&b),
            op(&a),
            &raw const n,
            &raw const m,
            &raw const k,
            &raw const alpha,
            b.elements.as_ptr(),
            &raw const ldb,
            a.elements.as_ptr(),
            &raw const lda,
            &raw const beta,
            out.as_mut_ptr(),
            &raw const n,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::operand::Operand;

    fn check_products<T: Operand + SmallGemm>() {
        let values: Vec<T> = (0..400).map(|i| T::from_f32((i as f32 * 0.37).sin())).collect();
        let at = |matrix: &Matrix<T>, row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            matrix.elements[row * matrix.stride + column].to_f32()
        };
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let matrix = |start: usize, stride, transposed| {
                let matrix = Matrix::new(&values[start..], stride);
                if transposed { matrix.transposed() } else { matrix }
            };
            let (a, b) = (matrix(3, 11, ta), matrix(50, 13, tb));
            let [m, n, k] = [5, 4, 7];
            for onto in [Onto::Nothing, Onto::Target] {
                let mut out = vec![1.0; m * n];
                T::product([m, n, k], [a, b], onto, &mut out);
                for row in 0..m {
                    for column in 0..n {
                        let sum: f32 = (0..k).map(|i| at(&a, row, i) * at(&b, i, column)).sum();
                        let found = out[row * n + column];
                        assert!(
                            (found - (sum + onto.factor())).abs() < 1e-4,
                            "{ta} {tb} {row} {column}: {found}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        check_products::<f32>();
        if best_kind(Kind::BFloat16) == Kind::BFloat16 {
            check_products::<bf16>();
        }
    }

    #[test]
    #[should_panic(expected = "matrices fit each other")]
    fn a_matrix_beyond_its_memory_is_refused() {
        let values = [0.0; 10];
        let a = Matrix::new(&values[..], 4);
        f32::product([3, 1, 3], [a, a], Onto::Nothing, &mut [0.0; 3]);
    }
}
