//! Products are exact, whatever their sizes, layout and threads.

use super::*;
use tch::Tensor;

/// Small whole numbers, whose products and sums are exact in f32.
fn whole_numbers(len: usize, seed: usize) -> Vec<bf16> {
    (0..len).map(|i| bf16::from_f32(((i * 31 + seed * 17 + i / 7) % 7) as f32 - 3.0)).collect()
}

/// The product by libtorch in f32 of operands that are stored `[rows, stride]` with `columns` in use, transposed or not.
fn expected(operands: [(&[bf16], usize, usize, bool); 2]) -> Vec<f32> {
    let [a, b] = operands.map(|(elements, stride, columns, transposed)| {
        let values: Vec<f32> = elements.iter().map(|value| value.to_f32()).collect();
        let whole = Tensor::from_slice(&values).view([-1, stride as i64]).narrow(1, 0, columns as i64);
        if transposed { whole.tr() } else { whole }
    });
    Vec::try_from(a.contiguous().mm(&b.contiguous()).view([-1])).unwrap()
}

fn check(unit: Unit, [m, n, k]: [usize; 3]) {
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let size = |transposed, rows, columns| if transposed { (columns, rows) } else { (rows, columns) };
        let ((a_rows, a_columns), (b_rows, b_columns)) = (size(ta, m, k), size(tb, k, n));
        let strides = [a_columns + 3, b_columns + 5];
        let (a, b) = (whole_numbers(a_rows * strides[0], 1), whole_numbers(b_rows * strides[1], 2));
        let product = expected([(&a, strides[0], a_columns, ta), (&b, strides[1], b_columns, tb)]);
        let matrix = |elements, stride, transposed| Matrix { elements, stride, transposed };
        let operands = [matrix(&a[..], strides[0], ta), matrix(&b[..], strides[1], tb)];
        // From the beginning of a line of memory on, or from within one.
        for (threads, onto, shift) in
            [(1, Onto::Memory, 0), (2, Onto::Nothing, 1), (2, Onto::Memory, 1), (7, Onto::Memory, 0)]
        {
            let mut memory = vec![f32::NAN; m * n + 32];
            let line = memory.as_ptr().align_offset(64) + shift;
            let out = &mut memory[line..][..m * n];
            unit.product([m, n, k], operands, onto, out, threads);
            assert!(out == product, "{m} {n} {k} {ta} {tb} {threads} {onto:?}");
            unit.product([m, n, k], operands, Onto::Target, out, threads);
            assert!(
                out.iter().zip(&product).all(|(sum, once)| *sum == 2.0 * once),
                "added: {m} {n} {k} {ta} {tb}"
            );
        }
    }
}

#[test]
fn products_of_every_size_are_exact() {
    let Some(unit) = Unit::get() else { return eprintln!("skipped: no matrix unit here") };
    for sizes in [[1, 1, 1], [31, 33, 31], [32, 64, 32], [40, 7, 300], [16, 100, 64], [65, 130, 270]] {
        check(unit, sizes);
    }
    // More than one block of every loop: steps, rows that are kept, panels.
    check(unit, [1_400, 700, 1_600]);
}

#[test]
fn nothing_to_add_up_gives_zeros_or_leaves_what_is_there() {
    let Some(unit) = Unit::get() else { return eprintln!("skipped: no matrix unit here") };
    let operands = [Matrix::new(&[], 0), Matrix::new(&[], 4)];
    let mut out = [1.0; 12];
    unit.product([3, 4, 0], operands, Onto::Target, &mut out, 2);
    assert_eq!(out, [1.0; 12]);
    unit.product([3, 4, 0], operands, Onto::Nothing, &mut out, 2);
    assert_eq!(out, [0.0; 12]);
    unit.product(
        [0, 4, 5],
        [Matrix::new(&[], 5), Matrix::new(&[bf16::ONE; 20], 4)],
        Onto::Nothing,
        &mut [],
        2,
    );
}

#[test]
fn a_result_does_not_depend_on_the_number_of_threads() {
    let Some(unit) = Unit::get() else { return eprintln!("skipped: no matrix unit here") };
    let [m, n, k] = [200, 150, 2_000];
    let values =
        |len, step: f32| -> Vec<bf16> { (0..len).map(|i| bf16::from_f32((i as f32 * step).sin())).collect() };
    let (a, b) = (values(m * k, 0.37), values(k * n, 0.73));
    let run = |threads| {
        let mut out = vec![0.0; m * n];
        let operands = [Matrix::new(&a[..], k), Matrix::new(&b[..], n)];
        unit.product([m, n, k], operands, Onto::Nothing, &mut out, threads);
        out
    };
    let once = run(1);
    assert!([2, 3, 8, 64].into_iter().all(|threads| run(threads) == once));
}

#[test]
fn parts_cover_both_sides_and_are_no_more_than_threads() {
    for threads in 1..40 {
        for strips in [[1, 1], [1, 90], [12, 3], [36, 72]] {
            let [rows, columns] = split(strips, threads);
            assert!(rows >= 1 && columns >= 1 && rows * columns <= threads, "{threads} {strips:?}");
        }
    }
    assert_eq!(split([36, 72], 2), [1, 2]);
    assert_eq!(split([96, 24], 2), [2, 1]);
}
