//! What hardware can do, as a file describes it: `configs/hardware/NAME.toml` or one of the user's.

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// A cluster of like nodes with like GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// What it is, for people.
    pub description: String,
    /// GPUs of a node.
    pub gpus_per_node: u64,
    /// Arithmetic of a GPU.
    pub compute: Compute,
    /// Memory of a GPU.
    pub memory: Memory,
    /// Between GPUs.
    pub links: Links,
    /// Behind the GPUs.
    pub host: Host,
}

/// Arithmetic of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Peak FLOP/s of bf16 products.
    pub bf16_flops: f64,
    /// Peak FLOP/s of fp32 products.
    pub fp32_flops: f64,
    /// Share of the peak that large matrix products reach.
    pub gemm_efficiency: f64,
    /// Tokens of a micro-batch at which matrix products reach half of that share.
    pub gemm_half_tokens: f64,
    /// Share of the peak that attention reaches.
    pub attention_efficiency: f64,
    /// Seconds from the start of one small kernel to that of the next.
    pub launch_s: f64,
}

/// Memory of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Its size.
    pub bytes: f64,
    /// Its peak rate.
    pub bytes_per_s: f64,
    /// Share of the rate that kernels reach.
    pub efficiency: f64,
}

/// Between GPUs; rates are those of one GPU in each direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// Peak rate within a node.
    pub node_bytes_per_s: f64,
    /// Seconds of a hop within a node.
    pub node_latency_s: f64,
    /// Peak rate between nodes.
    pub network_bytes_per_s: f64,
    /// Seconds of a hop between nodes.
    pub network_latency_s: f64,
    /// Share of the rates that collectives reach.
    pub efficiency: f64,
}

/// Behind the GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Rate of a GPU to its host.
    pub bytes_per_s: f64,
    /// Rate of a node to the file system of checkpoints.
    pub node_write_bytes_per_s: f64,
    /// Rate of all nodes to it.
    pub write_bytes_per_s: f64,
    /// Tokens that a data thread makes of text in a second.
    pub tokenised_per_s: f64,
}

impl Hardware {
    /// From a parsed file, which `origin` names.
    ///
    /// # Errors
    /// Keys that are missing, unknown or of the wrong type; numbers that describe nothing.
    pub fn from_table(table: toml::Table, origin: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError::Hardware { origin: origin.to_owned(), reason };
        let hardware: Self =
            table.try_into().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
        if hardware.gpus_per_node == 0 {
            return Err(wrong("gpus_per_node must be at least 1".to_owned()));
        }
        let (c, m, l, h) = (&hardware.compute, &hardware.memory, &hardware.links, &hardware.host);
        let shares = [
            ("compute.gemm_efficiency", c.gemm_efficiency),
            ("compute.attention_efficiency", c.attention_efficiency),
            ("memory.efficiency", m.efficiency),
            ("links.efficiency", l.efficiency),
        ];
        let rates = [
            ("compute.bf16_flops", c.bf16_flops),
            ("compute.fp32_flops", c.fp32_flops),
            ("memory.bytes", m.bytes),
            ("memory.bytes_per_s", m.bytes_per_s),
            ("links.node_bytes_per_s", l.node_bytes_per_s),
            ("links.network_bytes_per_s", l.network_bytes_per_s),
            ("host.bytes_per_s", h.bytes_per_s),
            ("host.node_write_bytes_per_s", h.node_write_bytes_per_s),
            ("host.write_bytes_per_s", h.write_bytes_per_s),
            ("host.tokenised_per_s", h.tokenised_per_s),
        ];
        let delays = [
            ("compute.gemm_half_tokens", c.gemm_half_tokens),
            ("compute.launch_s", c.launch_s),
            ("links.node_latency_s", l.node_latency_s),
            ("links.network_latency_s", l.network_latency_s),
        ];
        check(&shares, |share| share > 0.0 && share <= 1.0, "above 0 and at most 1").map_err(wrong)?;
        check(&rates, |rate| rate > 0.0 && rate.is_finite(), "above 0").map_err(wrong)?;
        check(&delays, |delay| delay >= 0.0 && delay.is_finite(), "at least 0").map_err(wrong)?;
        Ok(hardware)
    }
}

/// The first number that is none of its kind, as a sentence.
fn check(numbers: &[(&str, f64)], holds: impl Fn(f64) -> bool, rule: &str) -> Result<(), String> {
    let wrong = numbers.iter().find(|(_, number)| !holds(*number));
    wrong.map_or(Ok(()), |(key, number)| Err(format!("{key} = {number} must be {rule}")))
}
