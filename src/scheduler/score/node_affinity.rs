//! The sum of the weights of the preferred node terms that match.

use super::{NodeInfo, Pending, Snapshot, normalized};

pub fn score(pod: &Pending, _: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let Some(affinity) = &pod.affinity.node_affinity else { return vec![0; nodes.len()] };
    let terms = &affinity.preferred_during_scheduling_ignored_during_execution;
    let one = |node: &&NodeInfo| {
        terms.iter().filter(|term| term.preference.matches(&node.name, &node.labels)).map(|term| term.weight).sum()
    };
    normalized(nodes.iter().map(one).collect(), false)
}
