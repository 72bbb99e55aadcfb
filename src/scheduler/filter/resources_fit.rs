//! The node must have what the pod requests beside what its pods request already.

use super::{Cycle, NodeInfo, Rejection};

pub fn filter(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    let (wanted, used, whole) = (&cycle.pod.info.requests, &node.used, &node.allocatable);
    let mut found = Vec::new();
    if used.pods + 1 > whole.pods {
        found.push(Rejection::crowded("Too many pods"));
    }
    let basic = [
        ("cpu", wanted.cpu_milli, used.cpu_milli, whole.cpu_milli),
        ("memory", wanted.memory_bytes, used.memory_bytes, whole.memory_bytes),
        ("ephemeral-storage", wanted.ephemeral_bytes, used.ephemeral_bytes, whole.ephemeral_bytes),
    ];
    let others = wanted.others.iter().map(|(name, amount)| {
        let of = |map: &std::collections::BTreeMap<String, i64>| map.get(name).copied().unwrap_or(0);
        (name.as_str(), *amount, of(&used.others), of(&whole.others))
    });
    for (name, wanted, used, whole) in basic.into_iter().chain(others) {
        // What exceeds the whole node cannot be had by evicting pods.
        if wanted > 0 && wanted > whole - used {
            let rejection = Rejection::crowded(format!("Insufficient {name}"));
            found.push(Rejection { preemptible: wanted <= whole, ..rejection });
        }
    }
    found
}
