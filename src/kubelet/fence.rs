//! When a pod that asked for it must not run without the server (ARCHITECTURE "autonomy before fencing"): pure.
//! All other pods run on; a node cannot tell a dead server from its own isolation.

use crate::api::view::pod::Pod;
use crate::client::informer::Contact;
use crate::kubelet::memory::after;
use jiff::Timestamp;

/// `"true"`: the pod stops before the server may replace it, and does not start at a boot without the server.
pub const ANNOTATION: &str = "edgelet.io/fenced";
const TAINT: &str = "node.kubernetes.io/unreachable";
/// The server takes a node for lost after this long without a sign of life.
const NODE_GRACE_S: i64 = 40;
/// Longer than this a pod is not left running, however long it tolerates: it may be given up by hand.
const TOLERATION_LIMIT_S: i64 = 300;
/// Until then the containers have ended before the server acts.
const MARGIN_S: i64 = 10;
const DEFAULT_GRACE_S: i64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    Open,
    /// The pod stops then, unless the server answers before.
    Until(Timestamp),
    Shut,
}

/// `lost_at`: since when the server has not answered.
pub fn fence(pod: &Pod, contact: Contact, lost_at: Option<Timestamp>, now: Timestamp) -> Fence {
    let asked = pod.metadata.annotations.get(ANNOTATION).is_some_and(|value| value == "true");
    if !asked || contact.connected {
        return Fence::Open;
    }
    // A server that has not been heard since the start may have given the pod away long ago.
    let (true, Some(lost_at)) = (contact.confirmed, lost_at) else { return Fence::Shut };
    let stop_at = after(lost_at, runs_on_s(pod));
    if stop_at <= now { Fence::Shut } else { Fence::Until(stop_at) }
}

/// How long after the last contact the pod may begin to stop, so that it has stopped when it may be replaced.
fn runs_on_s(pod: &Pod) -> i64 {
    let lets_stay = |tolerated: &&crate::api::view::pod::Toleration| {
        (tolerated.key == TAINT || tolerated.key.is_empty()) && matches!(tolerated.effect.as_str(), "" | "NoExecute")
    };
    let tolerated = pod.spec.tolerations.iter().filter(lets_stay);
    let tolerated = tolerated.map(|one| one.toleration_seconds.unwrap_or(TOLERATION_LIMIT_S)).min().unwrap_or(0);
    let grace_s = pod.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S);
    (NODE_GRACE_S + tolerated.clamp(0, TOLERATION_LIMIT_S) - grace_s - MARGIN_S).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fenced_pod_stops_before_it_may_be_replaced() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let lost = Contact { confirmed: true, connected: false };
        let never = Contact::default();
        let connected = Contact { confirmed: true, connected: true };
        let tolerates = |seconds: i64| json!([{"key": TAINT, "effect": "NoExecute", "tolerationSeconds": seconds}]);
        let cases = [
            ("true", tolerates(300), lost, 0, Fence::Until(at(300))),
            ("true", tolerates(300), lost, 299, Fence::Until(at(300))),
            ("true", tolerates(300), lost, 300, Fence::Shut),
            ("true", tolerates(10), lost, 9, Fence::Until(at(10))),
            ("true", json!([]), lost, 0, Fence::Shut),
            ("true", json!([{"operator": "Exists"}]), lost, 100, Fence::Until(at(300))),
            ("true", tolerates(300), never, 0, Fence::Shut),
            ("true", tolerates(300), connected, 999, Fence::Open),
            ("false", tolerates(300), lost, 999, Fence::Open),
        ];
        for (asked, tolerations, contact, now, want) in cases {
            let pod = json!({"metadata": {"annotations": {ANNOTATION: asked}},
                "spec": {"tolerations": tolerations, "terminationGracePeriodSeconds": 30}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(fence(&pod, contact, Some(at(0)), at(now)), want, "{asked} {contact:?} {now}");
        }
    }
}
