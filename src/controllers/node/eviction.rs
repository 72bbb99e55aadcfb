//! How long a pod may stay on a node with NoExecute taints. Pure.

use crate::api::view::meta::{Condition, Meta};
use crate::api::view::node::Taint;
use crate::api::view::pod::Toleration;
use crate::controllers::timestamp;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// What of a pod matters here; the rest is skipped when it is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFacts {
    pub metadata: Meta,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: String,
    pub tolerations: Vec<Toleration>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub phase: String,
    pub conditions: Vec<Condition>,
}

impl PodFacts {
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Until(Timestamp),
    Over,
}

/// `since`: when taints without a time of their own were first seen.
pub fn stay(pod: &PodFacts, taints: &[Taint], since: Timestamp) -> Stay {
    let mut shortest: Option<i64> = None;
    let mut begin = timestamp(&pod.metadata.creation_timestamp).unwrap_or(since);
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut matching = pod.spec.tolerations.iter().filter(|toleration| toleration.tolerates(taint)).peekable();
        if matching.peek().is_none() {
            return Stay::Over;
        }
        // A time limit on one matching toleration stands, even if another has none.
        if let Some(seconds) = matching.filter_map(|toleration| toleration.toleration_seconds).min() {
            shortest = Some(shortest.map_or(seconds, |known| known.min(seconds)));
        }
        begin = begin.max(taint.time_added.as_deref().and_then(timestamp).unwrap_or(since));
    }
    match shortest {
        None => Stay::Forever,
        Some(seconds) if seconds <= 0 => Stay::Over,
        Some(seconds) => {
            Stay::Until(begin.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_stays_as_long_as_its_tolerations_say() {
        let at = |text: &str| -> Timestamp { text.parse().expect("time") };
        let taints: Vec<Taint> = serde_json::from_value(json!([
            {"key": "soft", "effect": "NoSchedule"},
            {"key": "lost", "effect": "NoExecute", "timeAdded": "2026-01-01T00:01:00Z"},
        ]))
        .expect("taints");
        let limit = |seconds: Value| json!({"key": "lost", "operator": "Exists", "tolerationSeconds": seconds});
        for (tolerations, expected) in [
            (json!([]), Stay::Over),
            (json!([limit(json!(null))]), Stay::Forever),
            (json!([limit(json!(300))]), Stay::Until(at("2026-01-01T00:06:00Z"))),
            (json!([limit(json!(300)), limit(json!(60))]), Stay::Until(at("2026-01-01T00:02:00Z"))),
            (json!([limit(json!(0))]), Stay::Over),
            (json!([{"operator": "Exists"}]), Stay::Forever),
        ] {
            let pod = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"tolerations": tolerations}});
            let pod: PodFacts = serde_json::from_value(pod).expect("pod");
            assert_eq!(stay(&pod, &taints, at("2026-01-01T00:00:00Z")), expected, "{tolerations}");
            assert_eq!(stay(&pod, &taints[..1], at("2026-01-01T00:00:00Z")), Stay::Forever);
        }
    }
}
