//! Round numbers for tests that count by hand.

use super::hardware::{Compute, Hardware, Host, Links, Memory};

/// Nodes of four slow GPUs.
pub(super) fn hardware() -> Hardware {
    Hardware {
        description: "for tests".into(),
        gpus_per_node: 4,
        compute: Compute {
            bf16_flops: 1000.0,
            fp32_flops: 100.0,
            gemm_efficiency: 0.5,
            gemm_half_tokens: 10.0,
            attention_efficiency: 0.25,
            launch_s: 0.0,
        },
        memory: Memory { bytes: 1e9, bytes_per_s: 1000.0, efficiency: 0.5 },
        links: Links {
            node_bytes_per_s: 100.0,
            node_latency_s: 1.0,
            network_bytes_per_s: 10.0,
            network_latency_s: 5.0,
            efficiency: 0.5,
        },
        host: Host {
            bytes_per_s: 100.0,
            node_write_bytes_per_s: 10.0,
            write_bytes_per_s: 20.0,
            tokenised_per_s: 1.0,
        },
    }
}
