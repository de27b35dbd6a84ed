//! Products of bf16 on the host with sums and results in f32: by the matrix unit, or by MKL.

use std::ffi::c_int;
use std::sync::LazyLock;

use half::bf16;

use super::is_intel;
use super::small::{Matrix, Onto};
use crate::native::{GemmBf16, native};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx::Unit;

/// What takes the products here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Products {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Unit(Unit),
    Mkl(GemmBf16),
}

impl Products {
    /// The fastest there is; none if libtorch's own products, which are rounded to bf16, are all there is.
    pub(super) fn best() -> Option<Self> {
        static BEST: LazyLock<Option<Products>> = LazyLock::new(|| Products::unit().or_else(Products::mkl));
        *BEST
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn unit() -> Option<Self> {
        Unit::get().map(Self::Unit)
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    fn unit() -> Option<Self> {
        None
    }

    pub(super) fn mkl() -> Option<Self> {
        native().gemm_bf16.filter(|_| is_intel()).map(Self::Mkl)
    }

    /// `out (+)= a b` for a [m, k], b [k, n] and out [m, n] without gaps; `mnk` are their sizes.
    pub(super) fn product(
        self,
        mnk: [usize; 3],
        operands: [Matrix<bf16>; 2],
        onto: Onto,
        out: &mut [f32],
        threads: usize,
    ) {
        let [m, n, k] = mnk;
        let [a, b] = operands;
        assert!(a.holds(m, k) && b.holds(k, n) && m * n == out.len(), "matrices fit each other");
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Unit(unit) => unit.product(mnk, operands, onto, out, threads),
            Self::Mkl(gemm) => by_mkl(gemm, mnk, operands, onto, out),
        }
    }
}

/// On all threads, unless this thread is one of several that take products of their own.
fn by_mkl(gemm: GemmBf16, mnk: [usize; 3], [a, b]: [Matrix<bf16>; 2], onto: Onto, out: &mut [f32]) {
    const ROW_MAJOR: c_int = 101;
    let op = |matrix: &Matrix<bf16>| if matrix.transposed { 112 } else { 111 };
    let [m, n, k] = mnk.map(|size| size as c_int);
    // SAFETY: the sizes were checked against the memory.
    unsafe {
        gemm(
            ROW_MAJOR,
            op(&a),
            op(&b),
            m,
            n,
            k,
            1.0,
            a.elements.as_ptr().cast(),
            a.stride as c_int,
            b.elements.as_ptr().cast(),
            b.stride as c_int,
            onto.factor(),
            out.as_mut_ptr(),
            n.max(1),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_takes_them_products_are_the_same() {
        let [m, n, k] = [5, 40, 70];
        let values: Vec<bf16> = (0..m * k + k * n).map(|i| bf16::from_f32((i % 9) as f32 - 4.0)).collect();
        let (a, b) = values.split_at(m * k);
        let results: Vec<_> = [Products::unit(), Products::mkl()]
            .into_iter()
            .flatten()
            .map(|products| {
                let mut out = vec![1.0; m * n];
                let operands = [Matrix::new(a, k), Matrix::new(b, k).transposed()];
                products.product([m, n, k], operands, Onto::Nothing, &mut out, 2);
                products.product([m, n, k], operands, Onto::Target, &mut out, 1);
                out
            })
            .collect();
        let cell = |row: usize, column: usize| -> f32 {
            (0..k).map(|i| 2.0 * a[row * k + i].to_f32() * b[column * k + i].to_f32()).sum()
        };
        for result in &results {
            assert!((0..m * n).all(|at| result[at] == cell(at / n, at % n)));
        }
    }
}
