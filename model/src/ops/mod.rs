//! What blocks and losses are made of between the products: on the host a kernel, elsewhere the same by libtorch's operations.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod dropout;
pub(crate) mod norm;
