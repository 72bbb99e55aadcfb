//! Less for each `PreferNoSchedule` taint the pod does not tolerate.

use super::{NodeInfo, Pending, Snapshot, normalized};
use crate::scheduler::filter::taint_toleration::tolerated;

pub fn score(pod: &Pending, _: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let one = |node: &&NodeInfo| {
        let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let count = soft.filter(|taint| !tolerated(&pod.tolerations, taint)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    normalized(nodes.iter().map(one).collect(), true)
}
