//! Tainted nodes take only pods that tolerate every taint of the effects NoSchedule and NoExecute.

use super::{Cycle, NodeInfo, Rejection};
use crate::api::view::node::Taint;
use crate::api::view::pod::Toleration;

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    let binding = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    if node.taints.iter().filter(binding).all(|taint| tolerated(&cycle.pod.tolerations, taint)) {
        return Vec::new();
    }
    vec![Rejection::lasting("node(s) had untolerated taint(s)")]
}

pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}
