//! More for nodes whose CPU and memory would be used in like measure.

use super::{NodeInfo, Pending, Snapshot};

pub fn score(pod: &Pending, _: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    // In hundredths of a percent, so that whole numbers suffice.
    let share =
        |whole: i64, used: i64| if whole <= 0 { 10_000 } else { (used * 100 / (whole / 100).max(1)).min(10_000) };
    let one = |node: &&NodeInfo| {
        let cpu = share(node.allocatable.cpu_milli, node.used.cpu_milli + pod.info.requests.cpu_milli);
        let memory = share(node.allocatable.memory_bytes, node.used.memory_bytes + pod.info.requests.memory_bytes);
        (10_000 - (cpu - memory).abs() / 2) / 100
    };
    nodes.iter().map(one).collect()
}
