//! Weights of preferred terms for each matching pod in the node's domain: near for affinity, away for anti-affinity.

use super::{MAX, NodeInfo, Pending, Snapshot};
use crate::api::view::pod::{PodAffinity, WeightedPodAffinityTerm};
use crate::scheduler::filter::pod_affinity::matches;
use std::collections::BTreeMap;

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
        let mut matching: BTreeMap<&str, i64> = BTreeMap::new();
        for domain in others.filter_map(|(node, _)| node.labels.get(&term.topology_key)) {
            *matching.entry(domain).or_default() += 1;
        }
        for (total, node) in totals.iter_mut().zip(nodes) {
            let domain = node.labels.get(&term.topology_key);
            let pods = domain.and_then(|domain| matching.get(domain.as_str())).copied().unwrap_or(0);
            *total += sign * weighted.weight * pods;
        }
    }
    between_extremes(&totals)
}

fn between_extremes(totals: &[i64]) -> Vec<i64> {
    let (low, high) = (totals.iter().min().copied().unwrap_or(0), totals.iter().max().copied().unwrap_or(0));
    totals.iter().map(|total| if high == low { 0 } else { (total - low) * MAX / (high - low) }).collect()
}
