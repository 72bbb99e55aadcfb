//! nodeSelector, and the required part of node affinity.

use super::{Cycle, NodeInfo, Rejection};
use crate::api::view::pod::{NodeSelector, NodeSelectorTerm};
use crate::scheduler::snapshot::Pending;
use std::collections::BTreeMap;

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    if matches(cycle.pod, node) {
        return Vec::new();
    }
    vec![Rejection::lasting("node(s) didn't match Pod's node affinity/selector")]
}

/// Whether the pod's own wishes allow the node, whatever runs there.
pub fn matches(pod: &Pending, node: &NodeInfo) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let affinity = pod.affinity.node_affinity.as_ref();
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| selects(selector, node))
}

/// Terms are alternatives; none at all selects nothing.
fn selects(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// An empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let by_field = |field: &crate::api::view::meta::Requirement| {
        field.matches(&BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]))
    };
    term.match_expressions.iter().all(|label| label.matches(&node.labels)) && term.match_fields.iter().all(by_field)
}
