//! Weights of preferred terms for each matching pod in the node's domain: near for affinity, away for anti-affinity.

use super::{MAX, NodeInfo, Pending, Snapshot};
use crate::api::view::pod::{PodAffinity, WeightedPodAffinityTerm};
use crate::scheduler::filter::pod_affinity::matches;

fn preferred(affinity: Option<&PodAffinity>) -> &[WeightedPodAffinityTerm] {
    affinity.map(|one| one.preferred_during_scheduling_ignored_during_execution.as_slice()).unwrap_or_default()
}

pub fn score(pod: &Pending, snapshot: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let near = preferred(pod.affinity.pod_affinity.as_ref()).iter().map(|term| (1, term));
    let away = preferred(pod.affinity.pod_anti_affinity.as_ref()).iter().map(|term| (-1, term));
    for (sign, weighted) in near.chain(away) {
        let term = &weighted.pod_affinity_term;
        let others =
            snapshot.placed().filter(|(_, other)| matches(term, &pod.info.namespace, other, &snapshot.namespaces));
        for domain in others.filter_map(|(node, _)| node.labels.get(&term.topology_key)) {
            for (total, node) in totals.iter_mut().zip(nodes) {
                if node.labels.get(&term.topology_key) == Some(domain) {
                    *total += sign * weighted.weight;
                }
            }
        }
    }
    between_extremes(&totals)
}

fn between_extremes(totals: &[i64]) -> Vec<i64> {
    let (low, high) = (totals.iter().min().copied().unwrap_or(0), totals.iter().max().copied().unwrap_or(0));
    totals.iter().map(|total| if high == low { 0 } else { (total - low) * MAX / (high - low) }).collect()
}
