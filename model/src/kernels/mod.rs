//! What is computed on the host between the products, each in one pass over memory on all threads.
//!
//! Every kernel has a twin made of libtorch's operations (`ops`, `loss::device`), which runs on any device; tests compare the two.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod norm;
pub(crate) mod operand;
pub(crate) mod residual;
pub(crate) mod simd;
pub(crate) mod softmax;

use tch::{Device, Tensor};

/// Whether the kernels can take the tensor.
pub(crate) fn can_take(tensor: &Tensor) -> bool {
    are_for(tensor.device())
}

/// Whether the kernels are for tensors of this device.
#[cfg(not(test))]
pub(crate) fn are_for(device: Device) -> bool {
    device == Device::Cpu
}

/// Whether they are, and the test has not set them aside.
#[cfg(test)]
pub(crate) fn are_for(device: Device) -> bool {
    device == Device::Cpu && !crate::testing::without_kernels()
}

/// Rows that one task of a loop takes. Fixed, because sums over rows are added task by task.
const ROWS: usize = 16;

/// Adds the `width` sums of every task to `target`, in the order of tasks.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_partial_sums(partials: &[f32], width: usize, target: &mut [f32]) {
    const COLUMNS: usize = 256;
    let columns = target[..width].chunks_mut(COLUMNS).enumerate().collect();
    crate::parallel::for_each_item(columns, |(index, target): (usize, &mut [f32])| {
        for partial in partials.chunks_exact(width) {
            for (sum, value) in target.iter_mut().zip(&partial[index * COLUMNS..]) {
                *sum += value;
            }
        }
    });
}
