//! Cordoned nodes take only pods that tolerate it.

use super::{Cycle, NodeInfo, Rejection};
use crate::api::view::node::Taint;

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    let cordoned = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    if !node.unschedulable || super::taint_toleration::tolerated(&cycle.pod.tolerations, &cordoned) {
        return Vec::new();
    }
    vec![Rejection::lasting("node(s) were unschedulable")]
}
