//! What blocks and losses are made of between the products: on the host a kernel, elsewhere the same by libtorch's operations.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod norm;
pub(crate) mod softmax;

use tch::{Device, Tensor};

/// Whether the kernels can take the tensor.
fn on_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu
}
