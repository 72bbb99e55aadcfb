//! Which of the nodes that fit is best: one list of weighted pure functions, a file each.
//! Each gives raw scores for all nodes at once and brings them to 0–100.

mod balanced_allocation;
mod image_locality;
mod least_allocated;
mod node_affinity;
mod pod_affinity;
mod taint_toleration;
mod topology_spread;

use super::snapshot::{NodeInfo, Pending, Snapshot};

const MAX: i64 = 100;

/// The pod, everything that is known, and the nodes that fit; one score per node in their order.
type Score = fn(&Pending, &Snapshot, &[&NodeInfo]) -> Vec<i64>;

pub const SCORES: &[(i64, Score)] = &[
    (3, taint_toleration::score),
    (2, node_affinity::score),
    (1, least_allocated::score),
    (2, topology_spread::score),
    (2, pod_affinity::score),
    (1, balanced_allocation::score),
    (1, image_locality::score),
];

/// The best node; among equals the one with the fewest pods, then by name.
pub fn best<'a>(pod: &Pending, snapshot: &Snapshot, nodes: &[&'a NodeInfo]) -> Option<&'a NodeInfo> {
    if let [only] = nodes {
        return Some(only);
    }
    let mut totals = vec![0; nodes.len()];
    for (weight, score) in SCORES {
        for (total, one) in totals.iter_mut().zip(score(pod, snapshot, nodes)) {
            *total += weight * one;
        }
    }
    let ranked = nodes.iter().zip(totals);
    ranked.max_by_key(|(node, total)| (*total, std::cmp::Reverse((node.pods.len(), &node.name)))).map(|(node, _)| *node)
}

/// Brings raw scores to 0–100 of the largest; all equal when the largest is zero.
fn normalized(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let largest = raw.iter().copied().max().unwrap_or(0);
    let scale = |one: i64| if largest == 0 { 0 } else { one * MAX / largest };
    raw.into_iter().map(|one| if reverse { MAX - scale(one) } else { scale(one) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::filter::tests::{node, pod, snapshot};
    use serde_json::{Value, json};

    fn chosen(spec: Value, snapshot: &Snapshot) -> String {
        let nodes: Vec<&NodeInfo> = snapshot.nodes().collect();
        best(&pod(spec), snapshot, &nodes).expect("a node").name.clone()
    }

    fn running(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": "db"}},
            "spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}]}})
    }

    #[test]
    fn an_emptier_node_wins() {
        let cluster = snapshot(&[(node("a", json!({})), vec![running("x", "1")]), (node("b", json!({})), vec![])]);
        assert_eq!(chosen(json!({"containers": [{}]}), &cluster), "b");
    }

    #[test]
    fn preferences_outweigh_emptiness() {
        let mut soft = node("a", json!({}));
        soft["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
        let cluster = snapshot(&[(soft, vec![]), (node("b", json!({"disk": "ssd"})), vec![running("x", "100m")])]);
        assert_eq!(chosen(json!({"containers": [{}]}), &cluster), "b");

        let cluster = snapshot(&[
            (node("a", json!({})), vec![]),
            (node("b", json!({"disk": "ssd"})), vec![running("x", "100m")]),
        ]);
        let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}});
        assert_eq!(chosen(preferred, &cluster), "b");
        let near = |kind: &str| {
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10,
                "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}}]}}})
        };
        assert_eq!(chosen(near("podAffinity"), &cluster), "b");
        assert_eq!(chosen(near("podAntiAffinity"), &cluster), "a");
    }

    #[test]
    fn a_node_that_has_the_image_wins_over_an_equal_one() {
        let mut ready = node("b", json!({}));
        ready["status"]["images"] = json!([{"names": ["big:1"], "sizeBytes": 2_000_000_000_i64}]);
        let cluster = snapshot(&[(node("a", json!({})), vec![]), (ready, vec![])]);
        assert_eq!(chosen(json!({"containers": [{"image": "big:1"}]}), &cluster), "b");
    }

    #[test]
    fn soft_spreading_prefers_the_emptier_domain() {
        let web = |name: &str| json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}}});
        let cluster = snapshot(&[
            (node("a", json!({"zone": "1"})), vec![web("x")]),
            (node("b", json!({"zone": "1"})), vec![]),
            (node("c", json!({"zone": "2"})), vec![running("y", "300m")]),
        ]);
        let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        assert_eq!(chosen(spec, &cluster), "c");
    }
}
