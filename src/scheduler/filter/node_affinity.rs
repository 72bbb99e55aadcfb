//! nodeSelector, and the required part of node affinity.

use super::{Cycle, NodeInfo, Rejection};
use crate::scheduler::snapshot::Pending;

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    if matches(cycle.pod, node) {
        return Vec::new();
    }
    vec![Rejection::lasting("node(s) didn't match Pod's node affinity/selector")]
}

/// Whether the pod's own wishes allow the node, whatever runs there.
pub fn matches(pod: &Pending, node: &NodeInfo) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    selected && pod.affinity.required_nodes().is_none_or(|selector| selector.matches(&node.name, &node.labels))
}
