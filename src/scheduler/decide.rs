//! The decision about one pod: filters, then scores, then, if nothing fits, whom to evict. Pure.

use super::filter::{Cycle, Rejection, rejections};
use super::preempt::{self, Preemption};
use super::score;
use super::snapshot::{NodeInfo, Pending, PodInfo, Snapshot};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug)]
pub enum Decision {
    Bind {
        node: String,
    },
    /// Nothing fits now.
    Wait {
        /// As upstream words `FailedScheduling`.
        message: String,
        /// Evict these from that node; the pod fits there afterwards.
        evict: Option<(String, Vec<Arc<PodInfo>>)>,
        /// Pods elsewhere could change it.
        neighbours: bool,
    },
}

/// Pods that were promised a node after an eviction, by key.
pub type Nominated = BTreeMap<String, (String, Arc<PodInfo>)>;

pub fn decide(pod: &Pending, snapshot: &Snapshot, nominated: &Nominated) -> Decision {
    let cycle = Cycle::new(pod, snapshot);
    let (mut fitting, mut rejected) = (Vec::new(), Vec::new());
    for node in snapshot.nodes() {
        let found = rejections(&cycle, &with_nominated(pod, node, nominated));
        if found.is_empty() {
            fitting.push(node);
        } else {
            rejected.push((node, found));
        }
    }
    if let Some(node) = score::best(pod, snapshot, &fitting) {
        return Decision::Bind { node: node.name.clone() };
    }
    let preemption = preempt::preempt(&cycle, snapshot, &rejected);
    let message = message(&rejected, &preemption);
    let neighbours = rejected.iter().flat_map(|(_, found)| found).any(|one| one.neighbours);
    let evict = match preemption {
        Preemption::Evict { node, victims } => Some((node, victims)),
        _ => None,
    };
    Decision::Wait { message, evict, neighbours }
}

/// The node as it will be when the pods that were promised it have come.
fn with_nominated<'a>(pod: &Pending, node: &'a NodeInfo, nominated: &Nominated) -> Cow<'a, NodeInfo> {
    let mut promised = Cow::Borrowed(node);
    for (key, (name, info)) in nominated {
        if *name == node.name && info.priority >= pod.info.priority && *key != pod.key() {
            promised.to_mut().add(info.clone());
        }
    }
    promised
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable. preemption: …`
fn message(rejected: &[(&NodeInfo, Vec<Rejection>)], preemption: &Preemption) -> String {
    if rejected.is_empty() {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons = rejected.iter().flat_map(|(_, found)| found).map(|one| one.reason.as_ref());
    let first = format!("0/{} nodes are available: {}.", rejected.len(), histogram(reasons));
    match preemption.message(rejected.len()) {
        None => first,
        Some(second) => format!("{first} preemption: {second}"),
    }
}

/// `1 one reason, 2 another`, sorted as text.
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::filter::tests::{node, pod, snapshot};
    use serde_json::{Value, json};

    fn running(name: &str, cpu: &str, priority: i64) -> Value {
        json!({"metadata": {"name": name, "namespace": "a"},
            "spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn asking(cpu: &str, priority: i64) -> Pending {
        pod(json!({"priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn outcome(decision: Decision) -> (String, Vec<String>) {
        match decision {
            Decision::Bind { node } => (node, Vec::new()),
            Decision::Wait { message, evict, .. } => {
                let names = |(node, victims): (String, Vec<Arc<PodInfo>>)| {
                    victims.iter().map(|victim| format!("{node}/{}", victim.name)).collect()
                };
                (message, evict.map(names).unwrap_or_default())
            }
        }
    }

    #[test]
    fn failures_read_as_upstream_words_them() {
        let mut tainted = node("a", json!({}));
        tainted["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        let cluster = snapshot(&[
            (tainted, vec![]),
            (node("b", json!({})), vec![running("x", "2", 0)]),
            (node("c", json!({})), vec![running("y", "2", 0)]),
        ]);
        let (message, victims) = outcome(decide(&asking("1", 0), &cluster, &Nominated::new()));
        assert_eq!(
            message,
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. preemption: 0/3 nodes are \
             available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
        );
        assert!(victims.is_empty());
        let (message, _) = outcome(decide(&asking("1", 0), &Snapshot::default(), &Nominated::new()));
        assert_eq!(message, "no nodes available to schedule pods");
        let (message, _) = outcome(decide(&asking("9", 0), &cluster, &Nominated::new()));
        assert_eq!(
            message,
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. preemption: 0/3 nodes are \
             available: 3 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn the_cheapest_sufficient_victims_give_way() {
        let cluster = snapshot(&[
            (node("a", json!({})), vec![running("important", "1500m", 50), running("x", "500m", 1)]),
            (node("b", json!({})), vec![running("y", "1", 2), running("z", "500m", 1), running("w", "500m", 1)]),
        ]);
        let outcome = |pod: Pending| outcome(decide(&pod, &cluster, &Nominated::new())).1;
        assert_eq!(outcome(asking("500m", 100)), ["a/x"]);
        assert_eq!(outcome(asking("1", 100)), ["b/w", "b/z"]);
        assert_eq!(outcome(asking("2", 100)), ["b/w", "b/y", "b/z"]);
        assert_eq!(outcome(asking("2", 1)), [] as [&str; 0]);
        let mut gentle = asking("1", 100);
        gentle.preempts = false;
        assert_eq!(outcome(gentle), [] as [&str; 0]);
    }

    #[test]
    fn room_made_for_a_pod_is_kept_for_it() {
        let cluster = snapshot(&[(node("a", json!({})), vec![])]);
        let promised = asking("2", 100);
        let mut info = (*promised.info).clone();
        info.name = "promised".into();
        let nominated = Nominated::from([("a/promised".to_owned(), ("a".to_owned(), Arc::new(info)))]);
        assert!(matches!(decide(&asking("1", 0), &cluster, &nominated), Decision::Wait { .. }));
        assert!(matches!(decide(&asking("1", 200), &cluster, &nominated), Decision::Bind { .. }));
    }
}
