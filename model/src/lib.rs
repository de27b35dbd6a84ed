//! The insertion language model: parameters, forward, loss with gradients, prediction.

pub mod config;
