//! Which nodes a pod may run on: one ordered list of pure functions, a file each.
//! Reasons are worded as upstream's plugins word them.

pub mod node_affinity;
mod node_ports;
mod node_unschedulable;
pub mod pod_affinity;
mod resources_fit;
pub mod taint_toleration;
pub mod topology_spread;

use super::snapshot::{NodeInfo, Pending, Snapshot};
use std::borrow::Cow;

/// Why a node is out of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Cow<'static, str>,
    /// Whether evicting pods from the node could change it.
    pub preemptible: bool,
    /// Whether pods elsewhere could change it.
    pub neighbours: bool,
}

impl Rejection {
    /// Of the node itself.
    fn lasting(reason: &'static str) -> Self {
        Self { reason: reason.into(), preemptible: false, neighbours: false }
    }
    /// Of what runs on the node.
    fn crowded(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), preemptible: true, neighbours: false }
    }
    /// Of where other pods are.
    fn neighbourly(reason: &'static str, preemptible: bool) -> Self {
        Self { reason: reason.into(), preemptible, neighbours: true }
    }
}

/// What filters know besides the node: counted once per pod.
pub struct Cycle<'a> {
    pub pod: &'a Pending,
    spread: topology_spread::Counts<'a>,
    affinity: pod_affinity::Counts<'a>,
}

impl<'a> Cycle<'a> {
    pub fn new(pod: &'a Pending, snapshot: &'a Snapshot) -> Self {
        Self {
            pod,
            spread: topology_spread::Counts::of(pod, snapshot),
            affinity: pod_affinity::Counts::of(pod, snapshot),
        }
    }
}

type Filter = fn(&Cycle, &NodeInfo) -> Vec<Rejection>;

/// In this order; the first that rejects a node speaks for it.
pub const FILTERS: &[Filter] = &[
    node_unschedulable::filter,
    taint_toleration::filter,
    node_affinity::filter,
    node_ports::filter,
    resources_fit::filter,
    topology_spread::filter,
    pod_affinity::filter,
];

/// Empty when the pod fits.
pub fn rejections(cycle: &Cycle, node: &NodeInfo) -> Vec<Rejection> {
    FILTERS.iter().map(|filter| filter(cycle, node)).find(|found| !found.is_empty()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub fn pod(spec: Value) -> Pending {
        let object = json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "web"}}, "spec": spec});
        Pending::of(serde_json::from_value(object).expect("pod"))
    }

    /// A cluster of nodes, each an object with `pods` beside it.
    pub fn snapshot(nodes: &[(Value, Vec<Value>)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (node, pods) in nodes {
            let name = node["metadata"]["name"].as_str().expect("name").to_owned();
            snapshot.set_node(&name, Some(serde_json::from_value(node.clone()).expect("node")));
            for pod in pods {
                let pod = serde_json::from_value(pod.clone()).expect("pod");
                snapshot.set_pod(&name, crate::scheduler::snapshot::PodInfo::of(&pod));
            }
        }
        snapshot
    }

    pub fn node(name: &str, labels: Value) -> Value {
        let mut labels = labels;
        labels["kubernetes.io/hostname"] = name.into();
        json!({"metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}}})
    }

    /// Reasons by node, `fits` for none.
    pub fn reasons(pod: &Pending, snapshot: &Snapshot) -> Vec<String> {
        let cycle = Cycle::new(pod, snapshot);
        let said = |found: Vec<Rejection>| found.iter().map(|one| one.reason.to_string()).collect::<Vec<_>>().join("+");
        snapshot.nodes().map(|node| said(rejections(&cycle, node))).collect()
    }

    const AFFINITY: &str = "node(s) didn't match Pod's node affinity/selector";
    const TAINTED: &str = "node(s) had untolerated taint(s)";
    const CORDONED: &str = "node(s) were unschedulable";
    const PORTS: &str = "node(s) didn't have free ports for the requested pod ports";

    #[test]
    fn each_filter_speaks_for_its_node() {
        let mut ssd = node("a", json!({"disk": "ssd", "cores": "4"}));
        ssd["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
        let mut cordoned = node("b", json!({}));
        cordoned["spec"]["unschedulable"] = true.into();
        let busy = json!({"metadata": {"name": "busy", "namespace": "a"}, "spec": {"containers": [
            {"ports": [{"hostPort": 80, "containerPort": 80}], "resources": {"requests": {"cpu": "1500m"}}}]}});
        let snapshot = snapshot(&[(ssd, vec![]), (cordoned, vec![]), (node("c", json!({})), vec![busy])]);
        let tolerate = json!([{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}]);
        let everything = json!([{"operator": "Exists"}]);
        let term = |expression: Value| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}})
        };
        let requests = |cpu: &str, memory: &str| json!([{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]);
        let cases: Vec<(Value, [&str; 3])> = vec![
            (json!({}), [TAINTED, CORDONED, ""]),
            (json!({"tolerations": tolerate}), ["", CORDONED, ""]),
            (json!({"tolerations": everything}), ["", "", ""]),
            (json!({"nodeSelector": {"disk": "ssd"}, "tolerations": everything}), ["", AFFINITY, AFFINITY]),
            (
                json!({"affinity": term(json!({"key": "cores", "operator": "Gt", "values": ["3"]})), "tolerations": everything}),
                ["", AFFINITY, AFFINITY],
            ),
            (
                json!({"tolerations": everything, "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}),
                [AFFINITY, "", AFFINITY],
            ),
            (
                json!({"tolerations": everything, "containers": [{"ports": [{"hostPort": 80, "containerPort": 1}]}]}),
                ["", "", PORTS],
            ),
            (
                json!({"tolerations": everything, "containers": requests("1", "2Gi")}),
                ["Insufficient memory", "Insufficient memory", "Insufficient cpu+Insufficient memory"],
            ),
            (
                json!({"tolerations": everything, "containers": [{"resources": {"requests": {"a.b/gpu": 1}}}]}),
                ["Insufficient a.b/gpu"; 3],
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(reasons(&pod(spec.clone()), &snapshot), expected, "{spec}");
        }
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let pods = (0..3).map(|n| json!({"metadata": {"name": format!("p{n}"), "namespace": "a"}})).collect();
        let snapshot = snapshot(&[(node("a", json!({})), pods)]);
        assert_eq!(reasons(&pod(json!({})), &snapshot), ["Too many pods"]);
    }
}
