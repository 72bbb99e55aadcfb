//! When a pod that asked for it must not run without the server (ARCHITECTURE "autonomy before fencing"): pure.
//! All other pods run on; a node cannot tell a dead server from its own isolation.

use crate::api::fencing;
use crate::api::view::pod::Pod;
use std::time::Duration;

/// What is known of the server, in elapsed time: clocks are set, and this must not follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// It is in this process, or answers.
    Here,
    /// It has heard this node so long ago, or later.
    Heard(Duration),
    /// Not since the start: it may have given the pod away long ago.
    Unheard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    Open,
    /// The pod stops after this, unless the server hears the node before.
    For(Duration),
    Shut,
}

pub fn fence(pod: &Pod, server: Server) -> Fence {
    if !fencing::is_asked(pod) {
        return Fence::Open;
    }
    let since = match server {
        Server::Here => return Fence::Open,
        Server::Heard(since) => since,
        Server::Unheard => return Fence::Shut,
    };
    let runs_on = Duration::from_secs(u64::try_from(fencing::runs_on_s(pod)).unwrap_or(0));
    match runs_on.saturating_sub(since) {
        Duration::ZERO => Fence::Shut,
        left => Fence::For(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fenced_pod_stops_before_it_may_be_replaced() {
        let (seconds, heard) = (Duration::from_secs, |seconds| Server::Heard(Duration::from_secs(seconds)));
        for (asked, server, want) in [
            ("true", heard(0), Fence::For(seconds(300))),
            ("true", heard(299), Fence::For(seconds(1))),
            ("true", heard(300), Fence::Shut),
            ("true", Server::Unheard, Fence::Shut),
            ("true", Server::Here, Fence::Open),
            ("false", heard(999), Fence::Open),
            ("false", Server::Unheard, Fence::Open),
        ] {
            let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute",
                "tolerationSeconds": 300}]);
            let pod = json!({"metadata": {"annotations": {fencing::ANNOTATION: asked}},
                "spec": {"tolerations": tolerations, "terminationGracePeriodSeconds": 30}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(fence(&pod, server), want, "{asked} {server:?}");
        }
    }
}
