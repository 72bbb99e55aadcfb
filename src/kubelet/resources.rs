//! Requests and limits in the kernel's units: CPU shares, quotas, bytes, OOM scores, QoS classes. Pure.

use super::admission::is_critical;
use super::memory::Role;
use super::memory::init_role;
use crate::api::quantity::Quantity;
use crate::api::resources::requests;
use crate::api::view::pod::{Container, Pod, ResourceRequirements};
use crate::runtime::{Qos, Resources};
use serde_json::Value;
use std::collections::BTreeMap;

const SHARES_PER_CPU: i128 = 1024;
const SHARES_LOW: u64 = 2;
const SHARES_HIGH: u64 = 262_144;
const PERIOD_US: i64 = 100_000;
/// The kernel refuses less.
const QUOTA_LOW_US: i64 = 1_000;
const OOM_SCORE_GUARANTEED: i32 = -997;
const OOM_SCORE_BEST_EFFORT: i32 = 1000;

/// A quantity; `None`: absent or not one.
fn quantity(value: Option<&Value>) -> Option<Quantity> {
    Quantity::from_value(value?).ok()
}

fn units(value: Option<&Value>) -> i64 {
    quantity(value).map_or(0, |quantity| quantity.value())
}

fn millis(value: Option<&Value>) -> i64 {
    quantity(value).map_or(0, |quantity| quantity.milli_value())
}

/// A container's request; an absent one is its limit.
fn request<'a>(resources: &'a ResourceRequirements, name: &str) -> Option<&'a Value> {
    resources.requests.get(name).or_else(|| resources.limits.get(name))
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by CPU and memory of every container.
pub fn qos_class(pod: &Pod) -> &'static str {
    match qos(pod) {
        Qos::Guaranteed => "Guaranteed",
        Qos::Burstable => "Burstable",
        Qos::BestEffort => "BestEffort",
    }
}

pub fn qos(pod: &Pod) -> Qos {
    match pod.status.qos_class.as_str() {
        "Guaranteed" => return Qos::Guaranteed,
        "Burstable" => return Qos::Burstable,
        "BestEffort" => return Qos::BestEffort,
        _ => {}
    }
    let positive =
        |map: &BTreeMap<String, Value>, name: &str| quantity(map.get(name)).filter(|value| *value > Quantity::ZERO);
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        for name in ["cpu", "memory"] {
            let limit = positive(&container.resources.limits, name);
            let wanted = positive(&container.resources.requests, name);
            any |= limit.is_some() || wanted.is_some();
            guaranteed &= limit.is_some() && wanted.is_none_or(|wanted| Some(wanted) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// One container's limits. `node_memory_bytes` scales the OOM score of burstable containers.
pub fn container_resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> Resources {
    let resources = &container.resources;
    let memory_request_bytes = units(request(resources, "memory"));
    Resources {
        cpu_shares: shares(millis(request(resources, "cpu"))),
        cpu_quota_us: quota_us(millis(resources.limits.get("cpu"))),
        cpu_period_us: PERIOD_US.unsigned_abs(),
        memory_limit_bytes: units(resources.limits.get("memory")),
        memory_request_bytes,
        pids_limit: 0,
        oom_score_adj: if is_node_critical(pod) {
            OOM_SCORE_GUARANTEED
        } else {
            oom_score_adj(qos(pod), memory_request_bytes, node_memory_bytes)
        },
        hugepage_limits: hugepages(resources),
    }
}

fn hugepages(resources: &ResourceRequirements) -> BTreeMap<String, u64> {
    let sized = |(name, value): (&String, &Value)| {
        let size = name.strip_prefix("hugepages-")?;
        Some((size.to_owned(), units(Some(value)).unsigned_abs()))
    };
    resources.limits.iter().filter_map(sized).collect()
}

/// The pod's own cgroup: the sum of the containers', limits only where each container has one.
pub fn pod_resources(pod: &Pod, node_memory_bytes: i64) -> Resources {
    let long_lived = pod.spec.init_containers.iter().filter(|container| init_role(container) == Role::Sidecar);
    let long_lived: Vec<Resources> = long_lived
        .chain(&pod.spec.containers)
        .map(|container| container_resources(pod, container, node_memory_bytes))
        .collect();
    let passing = pod.spec.init_containers.iter().filter(|container| init_role(container) == Role::Init);
    let passing: Vec<Resources> =
        passing.map(|container| container_resources(pod, container, node_memory_bytes)).collect();
    let limit = |pick: fn(&Resources) -> i64| -> i64 {
        if long_lived.iter().chain(&passing).any(|one| pick(one) == 0) {
            return 0;
        }
        let sum: i64 = long_lived.iter().map(pick).fold(0, i64::saturating_add);
        passing.iter().map(pick).fold(sum, i64::max)
    };
    Resources {
        cpu_shares: shares(requests(&pod.spec).cpu_milli),
        cpu_quota_us: limit(|one| one.cpu_quota_us),
        cpu_period_us: PERIOD_US.unsigned_abs(),
        memory_limit_bytes: limit(|one| one.memory_limit_bytes),
        memory_request_bytes: long_lived.iter().map(|one| one.memory_request_bytes).sum(),
        ..Resources::default()
    }
}

fn shares(milli_cpu: i64) -> u64 {
    let shares = i128::from(milli_cpu.max(0)) * SHARES_PER_CPU / 1000;
    u64::try_from(shares).unwrap_or(SHARES_HIGH).clamp(SHARES_LOW, SHARES_HIGH)
}

fn quota_us(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 { 0 } else { (milli_cpu.saturating_mul(PERIOD_US) / 1000).max(QUOTA_LOW_US) }
}

/// The last of the pods that the kernel kills, whatever memory they asked for.
fn is_node_critical(pod: &Pod) -> bool {
    is_critical(pod) && pod.spec.priority_class_name == "system-node-critical"
}

fn oom_score_adj(qos: Qos, memory_request_bytes: i64, node_memory_bytes: i64) -> i32 {
    match qos {
        Qos::Guaranteed => OOM_SCORE_GUARANTEED,
        Qos::BestEffort => OOM_SCORE_BEST_EFFORT,
        Qos::Burstable => {
            let share = i128::from(memory_request_bytes) * 1000 / i128::from(node_memory_bytes.max(1));
            let score = i32::try_from(1000 - share).unwrap_or(0);
            // Never below a guaranteed container, never equal to a best-effort one.
            score.clamp(1000 + OOM_SCORE_GUARANTEED, OOM_SCORE_BEST_EFFORT - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kernel_units() {
        for (milli, want_shares, want_quota) in [(0, 2, 0), (1, 2, 1000), (250, 256, 25_000), (2000, 2048, 200_000)] {
            assert_eq!((shares(milli), quota_us(milli)), (want_shares, want_quota), "{milli}m");
        }
        assert_eq!(oom_score_adj(Qos::Burstable, 0, 1 << 30), 999);
        assert_eq!(oom_score_adj(Qos::Burstable, 1 << 29, 1 << 30), 500);
        assert_eq!(oom_score_adj(Qos::Burstable, 1 << 30, 1 << 30), 3);
    }

    #[test]
    fn node_critical_pods_are_killed_last() {
        let score = |spec: Value| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("pod");
            container_resources(&pod, &pod.spec.containers[0], 1 << 30).oom_score_adj
        };
        let containers = json!([{"name": "a"}]);
        let (node, cluster) = ("system-node-critical", "system-cluster-critical");
        for (class, priority, want) in [
            (node, 2_000_001_000_i64, OOM_SCORE_GUARANTEED),
            (cluster, 2_000_000_000, OOM_SCORE_BEST_EFFORT),
            (node, 0, OOM_SCORE_BEST_EFFORT),
        ] {
            let spec = json!({"priorityClassName": class, "priority": priority, "containers": containers});
            assert_eq!(score(spec), want, "{class} {priority}");
        }
    }

    #[test]
    fn qos_classes() {
        let class = |resources: Value| {
            let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            qos_class(&serde_json::from_value(pod).expect("pod"))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    }

    #[test]
    fn a_pods_shares_are_those_of_all_that_runs_in_it() {
        let cpu = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": cpu("500m")});
        let pod = |init: Value| {
            let pod = json!({"spec": {"initContainers": [sidecar, {"name": "i", "resources": init}],
                "containers": [{"name": "a", "resources": cpu("1")}]}});
            pod_resources(&serde_json::from_value(pod).expect("pod"), 1 << 30).cpu_shares
        };
        assert_eq!(pod(json!({})), 1536);
        assert_eq!(pod(cpu("3")), 3584, "an init container runs beside the sidecars before it");
    }
}
