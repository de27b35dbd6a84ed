//! How long a collective takes: rings within nodes and between them, by bandwidth and latency.

use super::hardware::Hardware;

/// GPUs that take part in a collective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// GPUs of a node.
    pub local: f64,
    /// Nodes.
    pub nodes: f64,
}

impl Group {
    /// `gpus` GPUs on as few nodes as they need.
    pub fn new(hardware: &Hardware, gpus: u64) -> Self {
        let local = gpus.min(hardware.gpus_per_node);
        Self { local: local as f64, nodes: gpus.div_ceil(hardware.gpus_per_node) as f64 }
    }

    /// Bytes that a GPU sends in a reduce-scatter or an all-gather of `bytes`: all but its own part.
    pub fn sent(&self, bytes: f64) -> f64 {
        let gpus = self.local * self.nodes;
        bytes * (gpus - 1.0) / gpus
    }

    /// Seconds of a reduce-scatter or an all-gather of `bytes` in `buckets` pieces, one after the other: a ring in every
    /// node, then rings of GPUs with the same place in their nodes.
    pub fn seconds(&self, hardware: &Hardware, bytes: f64, buckets: f64) -> f64 {
        let Self { local, nodes } = *self;
        let links = &hardware.links;
        let inside = bytes * (local - 1.0) / local / (links.node_bytes_per_s * links.efficiency);
        let between = bytes / local * (nodes - 1.0) / nodes / (links.network_bytes_per_s * links.efficiency);
        inside + between + self.latency(hardware, buckets)
    }

    /// The part of [`seconds`](Self::seconds) that does not depend on the bytes.
    pub fn latency(&self, hardware: &Hardware, buckets: f64) -> f64 {
        let links = &hardware.links;
        buckets * ((self.local - 1.0) * links.node_latency_s + (self.nodes - 1.0) * links.network_latency_s)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hardware;
    use super::*;

    #[test]
    fn times_equal_a_count_by_hand() {
        let hardware = hardware();
        // 4 GPUs a node at 100 B/s and 1 s a hop, 10 B/s and 5 s between nodes, half of the rates reached.
        let alone = Group::new(&hardware, 1);
        assert_eq!((alone.seconds(&hardware, 1e9, 7.0), alone.sent(1e9)), (0.0, 0.0));
        let node = Group::new(&hardware, 4);
        assert_eq!(node.seconds(&hardware, 400.0, 2.0), 400.0 * 0.75 / 50.0 + 2.0 * 3.0);
        let all = Group::new(&hardware, 16);
        assert_eq!((all.local, all.nodes), (4.0, 4.0));
        assert_eq!(all.seconds(&hardware, 400.0, 1.0), 6.0 + 100.0 * 0.75 / 5.0 + (3.0 + 3.0 * 5.0));
        assert_eq!(all.sent(400.0), 375.0);
    }
}
