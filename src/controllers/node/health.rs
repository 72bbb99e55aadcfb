//! What a node's silence and its conditions mean for it: conditions to write and taints to bear. Pure.

use crate::api::view::node::{Node, Taint};
use crate::clock::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Conditions that taint the node while they hold.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// Conditions that only the node itself can know.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Conditions that a silent node no longer vouches for; empty when they say so already.
pub fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    let doubtful = REPORTED.iter().filter_map(|name| {
        let known = node.condition(name);
        let (reason, message) = match known {
            Some(condition) if condition.status == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        Some(json!({"type": name, "status": "Unknown", "reason": reason, "message": message,
            "lastTransitionTime": rfc3339(now)}))
    });
    doubtful.collect()
}

/// Whether a node that is not ready may be given up, that is, evict its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giving {
    Up,
    /// Not now; a node that was stays so.
    No,
    /// No, and who was is taken back.
    Back,
}

/// Whether the node is not ready or is silent.
pub fn is_lost(node: &Node, silent: bool) -> bool {
    silent || node.condition("Ready").is_some_and(|ready| ready.status != "True")
}

/// Whether the node's pods are evicted for its being lost.
pub fn is_given_up(node: &Node) -> bool {
    node.spec
        .taints
        .iter()
        .any(|taint| taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE))
}

/// All taints the node should bear, or nothing when it bears them. People's own taints stay.
pub fn taints(node: &Node, silent: bool, giving: Giving, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted = wanted(node, silent);
    let evicts = giving == Giving::Up || (giving == Giving::No && is_given_up(node));
    wanted.retain(|(_, effect)| evicts || *effect != "NoExecute");
    let managed = |taint: &Taint| {
        let pressure = taint.effect == "NoSchedule" && PRESSURES.iter().any(|(_, key)| *key == taint.key);
        let life = matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && (taint.key == NOT_READY || taint.key == UNREACHABLE);
        pressure || life || (taint.key == UNSCHEDULABLE && taint.effect == "NoSchedule")
    };
    let is_wanted = |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut taints: Vec<Taint> =
        node.spec.taints.iter().filter(|taint| !managed(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in &wanted {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            let time_added = Some(rfc3339(now));
            taints.push(Taint { key: (*key).into(), effect: (*effect).into(), time_added, ..Taint::default() });
        }
    }
    (taints != node.spec.taints).then_some(taints)
}

fn wanted(node: &Node, silent: bool) -> Vec<(&'static str, &'static str)> {
    let status = |name: &str| node.condition(name).map(|condition| condition.status.as_str());
    let mut wanted = Vec::new();
    let life = match status("Ready") {
        _ if silent => Some(UNREACHABLE),
        Some("Unknown") => Some(UNREACHABLE),
        Some("False") => Some(NOT_READY),
        _ => None,
    };
    if let Some(key) = life {
        wanted.extend([(key, "NoSchedule"), (key, "NoExecute")]);
    }
    let pressed = PRESSURES.iter().filter(|(name, _)| status(name) == Some("True"));
    wanted.extend(pressed.map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// Taints as the API has them: absent fields left out.
pub fn taints_value(taints: &[Taint]) -> Value {
    let one = |taint: &Taint| {
        let mut value = json!({"key": taint.key, "effect": taint.effect});
        if !taint.value.is_empty() {
            value["value"] = taint.value.clone().into();
        }
        if let Some(time) = &taint.time_added {
            value["timeAdded"] = time.clone().into();
        }
        value
    };
    taints.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("time")
    }

    fn node(conditions: Value, spec: Value) -> Node {
        serde_json::from_value(json!({"spec": spec, "status": {"conditions": conditions}})).expect("node")
    }

    fn ready(status: &str) -> Value {
        json!([{"type": "Ready", "status": status}])
    }

    fn shown(node: &Node, silent: bool) -> Option<Vec<String>> {
        let words = |taint: &Taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap_or_default(), taint.effect);
        taints(node, silent, Giving::Up, now()).map(|taints| taints.iter().map(words).collect())
    }

    #[test]
    fn taints_follow_the_conditions() {
        let own = json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]});
        let lost = json!({"taints": [
            {"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]});
        let both = |key: &str| vec![format!("{key}:NoSchedule"), format!("{key}:NoExecute")];
        assert_eq!(shown(&node(ready("True"), json!({})), false), None);
        assert_eq!(shown(&node(ready("False"), json!({})), false), Some(both("not-ready")));
        assert_eq!(shown(&node(ready("True"), json!({})), true), Some(both("unreachable")));
        assert_eq!(shown(&node(ready("Unknown"), lost.clone()), true), None);
        assert_eq!(shown(&node(ready("True"), lost), false), Some(vec![]));
        assert_eq!(
            shown(&node(ready("True"), json!({"unschedulable": true, "taints": own["taints"]})), false),
            Some(vec!["mine:NoSchedule".into(), "unschedulable:NoSchedule".into()])
        );
        let pressed = json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]);
        assert_eq!(shown(&node(pressed, json!({})), false), Some(vec!["disk-pressure:NoSchedule".into()]));
    }

    #[test]
    fn a_lost_node_evicts_only_when_it_is_given_up() {
        let effects = |node: &Node, giving| {
            let taints = taints(node, true, giving, now()).unwrap_or_else(|| node.spec.taints.clone());
            taints.iter().map(|taint| taint.effect.clone()).collect::<Vec<_>>()
        };
        let before = node(ready("True"), json!({}));
        assert_eq!(effects(&before, Giving::Up), ["NoSchedule", "NoExecute"]);
        assert_eq!(effects(&before, Giving::No), ["NoSchedule"]);
        let lost = node(
            ready("Unknown"),
            json!({"taints": [
            {"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]}),
        );
        assert_eq!(effects(&lost, Giving::No), ["NoSchedule", "NoExecute"]);
        assert_eq!(effects(&lost, Giving::Back), ["NoSchedule"]);
        assert!(is_given_up(&lost) && !is_given_up(&before));
    }

    #[test]
    fn a_silent_node_is_doubted_once() {
        let conditions = unknown_conditions(&node(ready("True"), json!({})), now());
        assert_eq!(conditions.len(), 4);
        assert_eq!(conditions[0]["reason"], "NodeStatusUnknown");
        assert_eq!(conditions[1]["reason"], "NodeStatusNeverUpdated");
        assert!(unknown_conditions(&node(json!(conditions), json!({})), now()).is_empty());
    }
}
