//! Small tensors for unit tests, and their comparison.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

thread_local!(static WITHOUT_KERNELS: Cell<bool> = const { Cell::new(false) });

/// Runs `f` as another device would: without kernels, by libtorch's operations.
pub(crate) fn as_elsewhere<T>(f: impl FnOnce() -> T) -> T {
    WITHOUT_KERNELS.set(true);
    let result = f();
    WITHOUT_KERNELS.set(false);
    result
}

/// Whether this thread is in [`as_elsewhere`].
pub(crate) fn without_kernels() -> bool {
    WITHOUT_KERNELS.get()
}

/// Numbers of both signs, without randomness.
pub(crate) fn wave(size: &[i64], phase: f64) -> Tensor {
    let count = Tensor::arange(size.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    ((count * 0.37 + phase).sin() * 1.3).to_kind(Kind::Float).view(size)
}

/// Largest difference relative to the largest expected value.
pub(crate) fn close(found: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()), "{what}");
    let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let size = double(expected).abs().max().double_value(&[]).max(1e-6);
    let error = (double(found) - double(expected)).abs().max().double_value(&[]) / size;
    assert!(error <= bound, "{what}: {error}");
}
