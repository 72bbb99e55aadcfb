//! A host port is taken once per node.

use super::{Cycle, NodeInfo, Rejection};

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    let wanted = &cycle.pod.info.host_ports;
    let taken = |port| node.pods.values().flat_map(|pod| &pod.host_ports).any(|other| other.clashes(port));
    if !wanted.iter().any(taken) {
        return Vec::new();
    }
    vec![Rejection::crowded("node(s) didn't have free ports for the requested pod ports")]
}
