//! More for nodes that have more left, CPU and memory alike.

use super::{MAX, NodeInfo, Pending, Snapshot};

pub fn score(pod: &Pending, _: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let free = |whole: i64, used: i64| if whole <= 0 || used > whole { 0 } else { (whole - used) * MAX / whole };
    let one = |node: &&NodeInfo| {
        let cpu = free(node.allocatable.cpu_milli, node.scored_cpu_milli + pod.info.scored_cpu_milli);
        let memory = free(node.allocatable.memory_bytes, node.scored_memory_bytes + pod.info.scored_memory_bytes);
        i64::midpoint(cpu, memory)
    };
    nodes.iter().map(one).collect()
}
