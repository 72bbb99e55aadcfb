//! What a node and its server agree on about fenced pods (ARCHITECTURE "autonomy before fencing"): the node ends such a
//! pod in time by itself, says so in a condition, and the server goes by what the node has said. Pure.

use super::view::meta::Condition;
use super::view::pod::Pod;

/// `"true"`: the pod ends before the server may replace it, and does not start at a boot without the server.
pub const ANNOTATION: &str = "edgelet.io/fenced";
/// The condition with which a node takes this on; its reason names the bound.
pub const CONDITION: &str = "edgelet.io/Fenced";
const REASON: (&str, &str) = ("EndsWithin", "s");

const TAINT: &str = "node.kubernetes.io/unreachable";
/// The server takes a node for lost after this long without a sign of life.
const NODE_GRACE_S: i64 = 40;
/// Longer than this a pod is not left running, however long it tolerates: it may be given up by hand.
const TOLERATION_LIMIT_S: i64 = 300;
/// From the last signal to a container until nothing of it runs.
const KILL_S: i64 = 10;
const DEFAULT_GRACE_S: i64 = 30;
/// Signs of life come seldom: a pod may run this long after one, or it would stop between two. The longest pause is
/// a ping's interval (18 s) and the wait for its answer (10 s).
pub const LEAST_S: i64 = 30;

pub fn is_asked(pod: &Pod) -> bool {
    pod.metadata.annotations.get(ANNOTATION).is_some_and(|value| value == "true")
}

/// How long after the server was heard last nothing of the pod runs any more, as the pod asks for it.
pub fn wanted_s(pod: &Pod) -> i64 {
    let lets_stay = |tolerated: &&super::view::pod::Toleration| {
        (tolerated.key == TAINT || tolerated.key.is_empty()) && matches!(tolerated.effect.as_str(), "" | "NoExecute")
    };
    let tolerated = pod.spec.tolerations.iter().filter(lets_stay);
    let tolerated = tolerated.map(|one| one.toleration_seconds.unwrap_or(TOLERATION_LIMIT_S)).min().unwrap_or(0);
    let stay_s = NODE_GRACE_S + tolerated.clamp(0, TOLERATION_LIMIT_S);
    stay_s.max(LEAST_S + grace_s(pod) + KILL_S)
}

/// The same as the node must keep it: what it has promised to the server stands until the server knows better.
pub fn ends_within_s(pod: &Pod) -> i64 {
    promised_s(&pod.status.conditions).map_or(wanted_s(pod), |promised| promised.min(wanted_s(pod)))
}

/// How long after the server was heard last the pod may begin to stop.
pub fn runs_on_s(pod: &Pod) -> i64 {
    (ends_within_s(pod) - grace_s(pod) - KILL_S).max(0)
}

/// What the condition says.
pub fn reason(ends_within_s: i64) -> String {
    format!("{}{ends_within_s}{}", REASON.0, REASON.1)
}

/// The bound that the node has promised; `None`: it has promised nothing.
pub fn promised_s(conditions: &[Condition]) -> Option<i64> {
    let condition = conditions.iter().find(|one| one.r#type == CONDITION && one.status == "True")?;
    let number = condition.reason.strip_prefix(REASON.0)?.strip_suffix(REASON.1)?;
    number.parse().ok().filter(|seconds| *seconds > 0)
}

fn grace_s(pod: &Pod) -> i64 {
    pod.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(tolerates: Option<i64>, grace_s: i64, promised: Option<&str>) -> Pod {
        let tolerations = tolerates
            .map(|seconds| json!({"key": TAINT, "effect": "NoExecute", "tolerationSeconds": seconds}))
            .into_iter()
            .collect::<Value>();
        let conditions = promised
            .map(|reason| json!({"type": CONDITION, "status": "True", "reason": reason}))
            .into_iter()
            .collect::<Value>();
        serde_json::from_value(json!({"metadata": {"annotations": {ANNOTATION: "true"}},
            "spec": {"tolerations": tolerations, "terminationGracePeriodSeconds": grace_s},
            "status": {"conditions": conditions}}))
        .expect("a pod")
    }

    #[test]
    fn a_pod_ends_within_what_it_asks_for_and_what_was_promised() {
        for (tolerates, grace_s, promised, runs_on, ends_within) in [
            (Some(300), 30, None, 300, 340),
            (Some(9999), 30, None, 300, 340),
            (Some(60), 10, None, 80, 100),
            (Some(10), 30, None, 30, 70),
            (None, 30, None, 30, 70),
            (None, 0, None, 30, 40),
            (None, 3600, None, 30, 3640),
            (Some(300), 30, Some("EndsWithin100s"), 60, 100),
            (Some(60), 10, Some("EndsWithin340s"), 80, 100),
            (Some(300), 30, Some("EndsWithin20s"), 0, 20),
            (Some(300), 30, Some("Nonsense"), 300, 340),
        ] {
            let pod = pod(tolerates, grace_s, promised);
            assert_eq!((runs_on_s(&pod), ends_within_s(&pod)), (runs_on, ends_within), "{tolerates:?} {grace_s}");
        }
    }

    #[test]
    fn a_promise_is_read_as_it_is_written() {
        let condition = |status: &str, reason: String| Condition {
            r#type: CONDITION.into(),
            status: status.into(),
            reason,
            ..Condition::default()
        };
        assert_eq!(promised_s(&[condition("True", reason(340))]), Some(340));
        for (status, reason) in
            [("False", reason(340)), ("True", "EndsWithins".into()), ("True", "EndsWithin-5s".into())]
        {
            assert_eq!(promised_s(&[condition(status, reason)]), None);
        }
    }
}
