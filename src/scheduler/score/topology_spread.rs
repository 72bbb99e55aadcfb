//! Less for domains that hold more matching pods, for constraints with `ScheduleAnyway`.

use super::{NodeInfo, Pending, Snapshot, normalized};
use crate::scheduler::filter::topology_spread::domains;

pub fn score(pod: &Pending, snapshot: &Snapshot, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let soft: Vec<_> = pod.spread.iter().filter(|one| one.when_unsatisfiable == "ScheduleAnyway").collect();
    if soft.is_empty() {
        return totals;
    }
    for constraint in soft {
        let domains = domains(pod, constraint, snapshot);
        // A node outside every domain is worse than the fullest one.
        let worst = domains.values().max().copied().unwrap_or(0) + 1;
        for (total, node) in totals.iter_mut().zip(nodes) {
            let domain = node.labels.get(&constraint.topology_key);
            *total += domain.and_then(|domain| domains.get(domain.as_str()).copied()).unwrap_or(worst);
        }
    }
    normalized(totals, true)
}
