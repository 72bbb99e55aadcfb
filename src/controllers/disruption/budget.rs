//! What a PodDisruptionBudget allows, as a function of its pods. Pure.

use crate::api::view::meta::Condition;
use crate::api::view::workload::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use crate::clock::rfc3339;
use crate::controllers::pods::PodFacts;
use crate::controllers::portion::portion;
use crate::controllers::timestamp;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an evicted pod may take to be marked as deleted.
pub const DELETION_LIMIT: SignedDuration = SignedDuration::from_mins(2);

/// What `spec` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub expected: i64,
    pub desired_healthy: i64,
}

/// Whether the pods' owners must be asked how many pods they want.
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = &budget.spec;
    !spec.max_unavailable.is_null() || spec.min_available.is_string()
}

/// `scale`: how many pods the owners of these pods want, where that matters.
pub fn demand(budget: &PodDisruptionBudget, pods: i64, scale: i64) -> Demand {
    let spec = &budget.spec;
    if !spec.max_unavailable.is_null() {
        let desired_healthy = (scale - portion(&spec.max_unavailable, scale, true)).max(0);
        return Demand { expected: scale, desired_healthy };
    }
    if let Some(number) = spec.min_available.as_i64() {
        return Demand { expected: pods, desired_healthy: number };
    }
    let expected = if spec.min_available.is_string() { scale } else { 0 };
    Demand { expected, desired_healthy: portion(&spec.min_available, scale, true) }
}

/// Evictions under way, those that nothing came of, and when the next one counts as one of these.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub disrupted: BTreeMap<String, String>,
    pub forgotten: Vec<String>,
    pub again: Option<Duration>,
}

pub fn pending(budget: &PodDisruptionBudget, pods: &[PodFacts], now: Timestamp) -> Pending {
    let mut pending = Pending::default();
    for pod in pods.iter().filter(|pod| !pod.metadata.is_deleting()) {
        let name = &pod.metadata.name;
        let Some(granted) = budget.status.disrupted_pods.get(name) else { continue };
        let left = timestamp(granted).map_or(SignedDuration::ZERO, |at| DELETION_LIMIT - now.duration_since(at));
        if left.is_negative() {
            pending.forgotten.push(name.clone());
            continue;
        }
        let wait = Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1);
        pending.disrupted.insert(name.clone(), granted.clone());
        pending.again = Some(pending.again.map_or(wait, |known| known.min(wait)));
    }
    pending
}

pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[PodFacts],
    demand: Demand,
    disrupted: BTreeMap<String, String>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let healthy = pods.iter().filter(|pod| {
        !pod.metadata.is_deleting() && !disrupted.contains_key(&pod.metadata.name) && pod.ready().is_some()
    });
    let current_healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
    let surplus = (current_healthy - demand.desired_healthy).max(0);
    let disruptions_allowed = if demand.expected > 0 { surplus } else { 0 };
    let observed_generation = budget.metadata.generation;
    let (status, reason) =
        if disruptions_allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        observed_generation,
        disruptions_allowed,
        current_healthy,
        desired_healthy: demand.desired_healthy,
        expected_pods: demand.expected,
        disrupted_pods: disrupted,
        conditions: with_condition(budget, status, reason, "", now),
    }
}

/// Nothing may be disrupted while it is not known what there is.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: 0,
        observed_generation: budget.metadata.generation,
        conditions: with_condition(budget, "False", "SyncFailed", why, now),
        ..budget.status.clone()
    }
}

fn with_condition(
    budget: &PodDisruptionBudget,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    const TYPE: &str = "DisruptionAllowed";
    let mut conditions = budget.status.conditions.clone();
    let old = conditions.iter().position(|one| one.r#type == TYPE);
    let same = old.map(|place| &conditions[place]).filter(|one| one.status == status);
    let since = same.and_then(|one| one.last_transition_time.clone()).unwrap_or_else(|| rfc3339(now));
    let condition = Condition {
        r#type: TYPE.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Some(since),
        observed_generation: Some(budget.metadata.generation),
        ..Condition::default()
    };
    match old {
        Some(place) => conditions[place] = condition,
        None => conditions.push(condition),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("time")
    }

    fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 4}, "spec": spec,
            "status": {"disruptedPods": disrupted}}))
        .expect("budget")
    }

    fn pods(text: &str) -> Vec<PodFacts> {
        let pod = |(place, sign): (usize, char)| {
            let mut pod = json!({"metadata": {"name": format!("p{place}")}, "status": {"conditions": [
                {"type": "Ready", "status": if sign == '!' { "False" } else { "True" }}]}});
            if sign == '-' {
                pod["metadata"]["deletionTimestamp"] = "t".into();
            }
            serde_json::from_value(pod).expect("pod")
        };
        text.chars().enumerate().map(pod).collect()
    }

    #[test]
    fn a_budget_counts_what_must_stay() {
        for (spec, expected) in [
            (json!({"maxUnavailable": 1}), (5, 4)),
            (json!({"maxUnavailable": "30%"}), (5, 3)),
            (json!({"maxUnavailable": "100%"}), (5, 0)),
            (json!({"minAvailable": 2}), (3, 2)),
            (json!({"minAvailable": "50%"}), (5, 3)),
            (json!({}), (0, 0)),
        ] {
            let demand = demand(&budget(spec.clone(), json!({})), 3, 5);
            assert_eq!((demand.expected, demand.desired_healthy), expected, "{spec}");
        }
        assert!(!needs_scale(&budget(json!({"minAvailable": 2}), json!({}))));
        assert!(needs_scale(&budget(json!({"minAvailable": "2%"}), json!({}))));
    }

    #[test]
    fn only_ready_pods_that_stay_are_healthy() {
        let budget =
            budget(json!({"minAvailable": 2}), json!({"p0": "2026-01-01T00:59:00Z", "gone": "2026-01-01T00:59:00Z"}));
        let pods = pods("++++!-");
        let pending = pending(&budget, &pods, now());
        assert_eq!(pending.disrupted.keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(pending.again.map(|wait| wait.as_secs()), Some(60));
        let status = status(&budget, &pods, demand(&budget, 6, 0), pending.disrupted, now());
        assert_eq!((status.current_healthy, status.disruptions_allowed, status.expected_pods), (3, 1, 6));
        assert_eq!(status.conditions[0].reason, "SufficientPods");
        assert_eq!(status.observed_generation, 4);
    }

    #[test]
    fn an_eviction_that_nothing_came_of_is_forgotten() {
        let budget = budget(json!({"minAvailable": 2}), json!({"p0": "2026-01-01T00:57:00Z"}));
        let pending = pending(&budget, &pods("++"), now());
        assert_eq!((pending.forgotten.as_slice(), pending.disrupted.len()), (["p0".to_owned()].as_slice(), 0));
    }

    #[test]
    fn what_is_not_known_may_not_be_disrupted() {
        let mut budget = budget(json!({"maxUnavailable": 1}), json!({}));
        budget.status.disruptions_allowed = 3;
        let status = failed(&budget, "no scale", now());
        assert_eq!((status.disruptions_allowed, status.conditions[0].reason.as_str()), (0, "SyncFailed"));
        assert_eq!(status.conditions[0].message, "no scale");
    }
}
