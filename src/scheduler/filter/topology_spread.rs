//! Topology spread constraints with `DoNotSchedule`: domains may differ by at most `maxSkew` matching pods.

use super::{Cycle, NodeInfo, Rejection};
use crate::api::view::pod::TopologySpreadConstraint;
use crate::scheduler::snapshot::{Pending, Snapshot};
use std::collections::BTreeMap;

/// Matching pods by domain, per constraint.
pub struct Counts<'a>(Vec<(&'a TopologySpreadConstraint, BTreeMap<&'a str, i64>)>);

impl<'a> Counts<'a> {
    pub fn of(pod: &'a Pending, snapshot: &'a Snapshot) -> Self {
        let hard = pod.spread.iter().filter(|constraint| constraint.when_unsatisfiable != "ScheduleAnyway");
        Self(hard.map(|constraint| (constraint, domains(pod, constraint, snapshot))).collect())
    }
}

/// Domains of the nodes the pod's own wishes allow, with their matching pods.
pub fn domains<'a>(
    pod: &Pending,
    constraint: &TopologySpreadConstraint,
    snapshot: &'a Snapshot,
) -> BTreeMap<&'a str, i64> {
    let mut domains = BTreeMap::new();
    for node in snapshot.nodes().filter(|node| super::node_affinity::matches(pod, node)) {
        if let Some(domain) = node.labels.get(&constraint.topology_key) {
            *domains.entry(domain.as_str()).or_default() += matching(pod, constraint, node);
        }
    }
    domains
}

fn matching(pod: &Pending, constraint: &TopologySpreadConstraint, node: &NodeInfo) -> i64 {
    let Some(selector) = &constraint.label_selector else { return 0 };
    let counts = node
        .pods
        .values()
        .filter(|other| !other.terminating && other.namespace == pod.info.namespace && selector.matches(&other.labels));
    i64::try_from(counts.count()).unwrap_or(i64::MAX)
}

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    for (constraint, domains) in &cycle.spread.0 {
        let Some(domain) = node.labels.get(&constraint.topology_key) else {
            let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
            return vec![Rejection::lasting(reason)];
        };
        let own = constraint.label_selector.as_ref().is_some_and(|one| one.matches(&cycle.pod.info.labels));
        let here = domains.get(domain.as_str()).copied().unwrap_or(0);
        let enough = i64::try_from(domains.len()).unwrap_or(i64::MAX) >= constraint.min_domains.unwrap_or(1);
        let least = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
        if here + i64::from(own) - least > constraint.max_skew {
            return vec![Rejection::neighbourly("node(s) didn't match pod topology spread constraints", true)];
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use crate::scheduler::filter::tests::{node, pod, reasons, snapshot};
    use serde_json::{Value, json};

    const SKEWED: &str = "node(s) didn't match pod topology spread constraints";

    #[test]
    fn domains_stay_within_the_skew() {
        let web = |name: &str| json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}}});
        let cluster = snapshot(&[
            (node("a", json!({"zone": "1"})), vec![web("x"), web("y")]),
            (node("b", json!({"zone": "2"})), vec![web("z")]),
            (node("c", json!({})), vec![]),
        ]);
        let missing = "node(s) didn't match pod topology spread constraints (missing required label)";
        let constraint = |extra: Value| {
            let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}});
            constraint.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
            pod(json!({"topologySpreadConstraints": [constraint]}))
        };
        assert_eq!(reasons(&constraint(json!({})), &cluster), [SKEWED, "", missing]);
        assert_eq!(reasons(&constraint(json!({"maxSkew": 2})), &cluster), ["", "", missing]);
        assert_eq!(reasons(&constraint(json!({"minDomains": 3})), &cluster), [SKEWED, SKEWED, missing]);
        assert_eq!(reasons(&constraint(json!({"whenUnsatisfiable": "ScheduleAnyway"})), &cluster), ["", "", ""]);
    }
}
