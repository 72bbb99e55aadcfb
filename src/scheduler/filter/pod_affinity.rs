//! Required affinity and anti-affinity between pods, and the anti-affinity of the pods already there.

use super::{Cycle, NodeInfo, Rejection};
use crate::api::view::pod::{PodAffinity, PodAffinityTerm};
use crate::scheduler::snapshot::{Pending, PodInfo, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// Topology key and value.
type Domain<'a> = (&'a str, &'a str);

pub struct Counts<'a> {
    /// Per required term, the domains that hold a matching pod.
    wanted: Vec<(&'a PodAffinityTerm, BTreeSet<&'a str>)>,
    shunned: Vec<(&'a PodAffinityTerm, BTreeSet<&'a str>)>,
    /// Domains whose pods shun this one.
    closed: BTreeSet<Domain<'a>>,
    /// Nothing matches yet, but the pod matches its own terms: it is the first of its group.
    first: bool,
}

fn required(affinity: Option<&PodAffinity>) -> &[PodAffinityTerm] {
    affinity.map(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_slice()).unwrap_or_default()
}

impl<'a> Counts<'a> {
    pub fn of(pod: &'a Pending, snapshot: &'a Snapshot) -> Self {
        let domains = |terms: &'a [PodAffinityTerm]| -> Vec<_> {
            terms.iter().map(|term| (term, domains(term, pod, snapshot))).collect()
        };
        let terms = required(pod.affinity.pod_affinity.as_ref());
        let wanted = domains(terms);
        let own = terms.iter().all(|term| matches(term, &pod.info.namespace, &pod.info, &snapshot.namespaces));
        Self {
            first: own && wanted.iter().all(|(_, found)| found.is_empty()),
            wanted,
            shunned: domains(required(pod.affinity.pod_anti_affinity.as_ref())),
            closed: closed(pod, snapshot),
        }
    }
}

fn domains<'a>(term: &PodAffinityTerm, pod: &Pending, snapshot: &'a Snapshot) -> BTreeSet<&'a str> {
    let near = snapshot.placed().filter(|(_, other)| matches(term, &pod.info.namespace, other, &snapshot.namespaces));
    near.filter_map(|(node, _)| node.labels.get(&term.topology_key).map(String::as_str)).collect()
}

fn closed<'a>(pod: &Pending, snapshot: &'a Snapshot) -> BTreeSet<Domain<'a>> {
    let mut closed = BTreeSet::new();
    for (node, other) in snapshot.shunning() {
        for term in &other.anti_affinity {
            if matches(term, &other.namespace, &pod.info, &snapshot.namespaces)
                && let Some((key, value)) = node.labels.get_key_value(&term.topology_key)
            {
                closed.insert((key.as_str(), value.as_str()));
            }
        }
    }
    closed
}

/// Whether a term of a pod in `namespace` means the other pod.
pub fn matches(
    term: &PodAffinityTerm,
    namespace: &str,
    other: &PodInfo,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
) -> bool {
    let listed = term.namespaces.contains(&other.namespace);
    let own = term.namespaces.is_empty() && term.namespace_selector.is_none() && other.namespace == namespace;
    let empty = BTreeMap::new();
    let labels = namespaces.get(&other.namespace).unwrap_or(&empty);
    let selected = term.namespace_selector.as_ref().is_some_and(|selector| selector.matches(labels));
    (listed || own || selected) && term.label_selector.as_ref().is_some_and(|one| one.matches(&other.labels))
}

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    let counts = &cycle.affinity;
    let holds = |(term, domains): &(&PodAffinityTerm, BTreeSet<&str>)| {
        node.labels.get(&term.topology_key).is_some_and(|domain| domains.contains(domain.as_str()))
    };
    let labelled = |(term, _): &(&PodAffinityTerm, BTreeSet<&str>)| node.labels.contains_key(&term.topology_key);
    let together = counts.wanted.iter().all(holds) || (counts.first && counts.wanted.iter().all(labelled));
    if !together {
        return vec![Rejection::neighbourly("node(s) didn't match pod affinity rules", false)];
    }
    if counts.shunned.iter().any(holds) {
        return vec![Rejection::neighbourly("node(s) didn't match pod anti-affinity rules", true)];
    }
    if counts.closed.iter().any(|(key, value)| node.labels.get(*key).is_some_and(|label| label == value)) {
        return vec![Rejection::neighbourly("node(s) didn't satisfy existing pods anti-affinity rules", true)];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use crate::scheduler::filter::tests::{node, pod, reasons, snapshot};
    use serde_json::{Value, json};

    const HOST: &str = "kubernetes.io/hostname";
    const ALONE: &str = "node(s) didn't match pod affinity rules";
    const CLOSE: &str = "node(s) didn't match pod anti-affinity rules";
    const SHUNNED: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

    fn rule(kind: &str, app: &str, namespaces: Value) -> Value {
        let term =
            json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": HOST, "namespaces": namespaces});
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    }

    #[test]
    fn pods_keep_together_and_apart() {
        let mut shy = json!({"metadata": {"name": "shy", "namespace": "a", "labels": {"app": "shy"}}});
        shy["spec"] = rule("podAntiAffinity", "web", json!([]));
        let db = json!({"metadata": {"name": "db", "namespace": "a", "labels": {"app": "db"}}});
        let cluster = snapshot(&[
            (node("a", json!({})), vec![db]),
            (node("b", json!({})), vec![shy]),
            (node("c", json!({})), vec![]),
        ]);
        for (spec, expected) in [
            (json!({}), ["", SHUNNED, ""]),
            (rule("podAffinity", "db", json!([])), ["", ALONE, ALONE]),
            (rule("podAffinity", "db", json!(["other"])), [ALONE, ALONE, ALONE]),
            // The pod itself is what it wants to be near: the first may start anywhere.
            (rule("podAffinity", "web", json!([])), ["", SHUNNED, ""]),
            (rule("podAntiAffinity", "db", json!([])), [CLOSE, SHUNNED, ""]),
        ] {
            assert_eq!(reasons(&pod(spec.clone()), &cluster), expected, "{spec}");
        }
    }
}
