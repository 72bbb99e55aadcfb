//! Whether this node takes a pod that was bound to it: the last word, in upstream's reasons and words. Pure.
//! The scheduler asks the same, but others bind pods too, and the node may have changed since.

use super::plan::Verdict;
use crate::api::resources::{Resources, host_ports, requests};
use crate::api::view::node::{Node, Taint};
use crate::api::view::pod::Pod;
use crate::runtime::sysctl;

/// Pods of at least this priority are the system's own: nothing on the node makes them give way.
const SYSTEM_CRITICAL: i64 = 2_000_000_000;

pub fn is_critical(pod: &Pod) -> bool {
    pod.spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL)
}

/// What a node is short of or about to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distress {
    /// Conditions that hold: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
    pub pressures: Vec<&'static str>,
    pub shutting_down: bool,
}

/// `others`: pods that the node has taken and that have not ended. `node`: absent while it is not known.
pub fn admit(
    pod: &Pod,
    others: &[Pod],
    node: Option<&Node>,
    allocatable: &Resources,
    distress: &Distress,
) -> Result<(), Verdict> {
    let reject = |reason: String, message: String| Err(Verdict::rejected(reason, &message));
    if let Some(message) = under_pressure(pod, distress) {
        return reject("Evicted".into(), message);
    }
    if let Some(why) = forbidden_sysctl(pod) {
        return reject("SysctlForbidden".into(), format!("forbidden sysctl: {why}"));
    }
    if let Some((resource, numbers)) = lacking(pod, others, allocatable) {
        let message = format!("Node didn't have enough resource: {resource}, {numbers}");
        return reject(format!("OutOf{resource}"), message);
    }
    let failed = node.and_then(|node| unsuitable(pod, node)).or_else(|| ports_taken(pod, others));
    if let Some((predicate, why)) = failed {
        return reject(predicate.into(), format!("Predicate {predicate} failed: {why}"));
    }
    if distress.shutting_down {
        return reject("NodeShutdown".into(), "Pod was rejected as the node is shutting down.".into());
    }
    Ok(())
}

fn under_pressure(pod: &Pod, distress: &Distress) -> Option<String> {
    if distress.pressures.is_empty() || is_critical(pod) {
        return None;
    }
    if distress.pressures == ["MemoryPressure"] {
        let taint =
            Taint { key: "node.kubernetes.io/memory-pressure".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if super::resources::qos_class(pod) != "BestEffort" || pod.spec.tolerates(&taint) {
            return None;
        }
    }
    Some(format!("The node had condition: [{}]. ", distress.pressures.join(" ")))
}

fn forbidden_sysctl(pod: &Pod) -> Option<String> {
    let mut wanted = pod.spec.security_context.sysctls.iter();
    wanted.find_map(|one| sysctl::check(&one.name, pod.spec.host_network, pod.spec.host_ipc).err())
}

/// The first resource that the node has too little of.
fn lacking(pod: &Pod, others: &[Pod], whole: &Resources) -> Option<(String, String)> {
    let wanted = requests(&pod.spec);
    let mut used = Resources::default();
    for other in others {
        used.add(&requests(&other.spec));
    }
    let basic = [
        ("pods", 1, used.pods, whole.pods),
        ("cpu", wanted.cpu_milli, used.cpu_milli, whole.cpu_milli),
        ("memory", wanted.memory_bytes, used.memory_bytes, whole.memory_bytes),
        ("ephemeral-storage", wanted.ephemeral_bytes, used.ephemeral_bytes, whole.ephemeral_bytes),
    ];
    // What the node does not count it does not run out of.
    let mut found =
        basic.into_iter().filter(|(_, wanted, used, whole)| *whole > 0 && *wanted > 0 && *wanted > whole - used);
    let (resource, wanted, used, whole) = found.next()?;
    Some((resource.to_owned(), format!("requested: {wanted}, used: {used}, capacity: {whole}")))
}

fn unsuitable(pod: &Pod, node: &Node) -> Option<(&'static str, &'static str)> {
    if !pod.spec.allows_node(&node.metadata.name, &node.metadata.labels) {
        return Some(("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if pod.spec.node_name != node.metadata.name {
        return Some(("NodeName", "node(s) didn't match the requested node name"));
    }
    let mut expelling = node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute");
    expelling.any(|taint| !pod.spec.tolerates(taint)).then_some(("TaintToleration", "node(s) had untolerated taint(s)"))
}

fn ports_taken(pod: &Pod, others: &[Pod]) -> Option<(&'static str, &'static str)> {
    let wanted = host_ports(pod);
    let taken = |other: &Pod| host_ports(other).iter().any(|port| wanted.iter().any(|own| own.clashes(port)));
    let clash = !wanted.is_empty() && others.iter().any(taken);
    clash.then_some(("NodePorts", "node(s) didn't have free ports for the requested pod ports"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = "n".into();
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec})).expect("pod")
    }

    fn asks(cpu: &str) -> Value {
        json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]})
    }

    fn node(taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "sd"}}, "spec": {"taints": taints}}))
            .expect("node")
    }

    fn told(pod: &Pod, others: &[Pod], node: &Node, distress: &Distress) -> String {
        let quantities = json!({"cpu": "2", "memory": "1Gi", "pods": "3"});
        let allocatable = Resources::parse(quantities.as_object().expect("map"));
        let outcome = admit(pod, others, Some(node), &allocatable, distress);
        outcome.map_or_else(|verdict| format!("{}: {}", verdict.reason, verdict.message), |()| "taken".into())
    }

    #[test]
    fn a_pod_that_does_not_fit_is_rejected_in_upstreams_words() {
        let port = json!({"containers": [{"ports": [{"hostPort": 80, "containerPort": 80}]}]});
        let cases = [
            (asks("1"), vec![], json!([]), "taken"),
            (
                asks("1500m"),
                vec![asks("1")],
                json!([]),
                "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
            ),
            (
                json!({}),
                vec![json!({}), json!({}), json!({})],
                json!([]),
                "OutOfpods: Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
            ),
            (
                json!({"nodeSelector": {"disk": "ssd"}}),
                vec![],
                json!([]),
                "NodeAffinity: Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            ),
            (
                port.clone(),
                vec![port],
                json!([]),
                "NodePorts: Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
            (json!({}), vec![], json!([{"key": "k", "effect": "NoSchedule"}]), "taken"),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern", "value": "|/tmp/x"}]}}),
                vec![],
                json!([]),
                "SysctlForbidden: Pod was rejected: forbidden sysctl: \"kernel.core_pattern\" not allowlisted",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}}),
                vec![],
                json!([]),
                "taken",
            ),
            (
                json!({}),
                vec![],
                json!([{"key": "k", "effect": "NoExecute"}]),
                "TaintToleration: Pod was rejected: Predicate TaintToleration failed: node(s) had untolerated taint(s)",
            ),
        ];
        for (spec, others, taints, expected) in cases {
            let others: Vec<Pod> = others.into_iter().map(pod).collect();
            assert_eq!(told(&pod(spec.clone()), &others, &node(taints), &Distress::default()), expected, "{spec}");
        }
    }

    #[test]
    fn a_node_in_distress_takes_only_what_it_can_bear() {
        let low = |pressures: &[&'static str]| Distress { pressures: pressures.to_vec(), shutting_down: false };
        let calm = node(json!([]));
        let critical = pod(json!({"priority": SYSTEM_CRITICAL}));
        let evicted = "Evicted: Pod was rejected: The node had condition: [MemoryPressure]. ";
        assert_eq!(told(&pod(json!({})), &[], &calm, &low(&["MemoryPressure"])), evicted);
        assert_eq!(told(&pod(asks("1")), &[], &calm, &low(&["MemoryPressure"])), "taken");
        assert_eq!(told(&critical, &[], &calm, &low(&["DiskPressure"])), "taken");
        assert!(told(&pod(asks("1")), &[], &calm, &low(&["DiskPressure"])).starts_with("Evicted"));
        let leaving = Distress { shutting_down: true, ..Distress::default() };
        assert_eq!(
            told(&critical, &[], &calm, &leaving),
            "NodeShutdown: Pod was rejected: Pod was rejected as the node is shutting down."
        );
    }
}
