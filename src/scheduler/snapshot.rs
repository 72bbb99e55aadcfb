//! What the scheduler knows: nodes with what their pods use, kept up change by change.
//! A pod that was given a node counts there at once, before the API shows it (assumed).

use crate::api::resources::{HostPort, Resources, host_ports, requests, scored};
use crate::api::view::meta::{Condition, Meta};
use crate::api::view::node::{Node, Taint};
use crate::api::view::pod::{Affinity, Pod, PodAffinityTerm, Toleration, TopologySpreadConstraint};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What is remembered of a pod on a node.
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub priority: i64,
    pub start_time: Option<String>,
    pub terminating: bool,
    pub requests: Resources,
    pub scored_cpu_milli: i64,
    pub scored_memory_bytes: i64,
    pub host_ports: Vec<HostPort>,
    pub anti_affinity: Vec<PodAffinityTerm>,
}

/// A pod that wants a node.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    pub info: Arc<PodInfo>,
    pub metadata: Meta,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Affinity,
    pub tolerations: Vec<Toleration>,
    pub spread: Vec<TopologySpreadConstraint>,
    pub images: Vec<String>,
    pub preempts: bool,
    pub nominated_node: String,
    /// The condition PodScheduled as the object has it.
    pub scheduled: Option<Condition>,
}

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    /// Size in bytes by every name the image has.
    pub images: HashMap<String, i64>,
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    /// How many of them shun others.
    pub shunning: usize,
    pub used: Resources,
    pub scored_cpu_milli: i64,
    pub scored_memory_bytes: i64,
}

struct Placed {
    node: String,
    assumed: bool,
}

/// Nodes by name, pods by `namespace/name`.
#[derive(Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    placed: HashMap<String, Placed>,
    /// Labels of namespaces, for affinity terms with a namespace selector.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl PodInfo {
    pub fn of(pod: &Pod) -> Self {
        let requests = requests(&pod.spec);
        let (scored_cpu_milli, scored_memory_bytes) = scored(&pod.spec, &requests);
        let anti = pod.spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        Self {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            labels: pod.metadata.labels.clone(),
            priority: pod.spec.priority.unwrap_or(0),
            start_time: pod.status.start_time.clone(),
            terminating: pod.is_terminating(),
            requests,
            scored_cpu_milli,
            scored_memory_bytes,
            host_ports: host_ports(pod),
            anti_affinity: anti
                .map(|anti| anti.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
        }
    }

    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Pending {
    pub fn of(pod: Pod) -> Self {
        let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        Self {
            info: Arc::new(PodInfo::of(&pod)),
            images: containers.map(|container| container.image.clone()).collect(),
            preempts: pod.spec.preemption_policy != "Never",
            nominated_node: pod.status.nominated_node_name,
            scheduled: pod.status.conditions.into_iter().find(|condition| condition.r#type == "PodScheduled"),
            metadata: pod.metadata,
            node_selector: pod.spec.node_selector,
            affinity: pod.spec.affinity.unwrap_or_default(),
            tolerations: pod.spec.tolerations,
            spread: pod.spec.topology_spread_constraints,
        }
    }

    pub fn key(&self) -> String {
        self.info.key()
    }
}

impl NodeInfo {
    /// Takes what the object says; pods stay. Whether something changed that decides about pods.
    fn describe(&mut self, node: Node) -> bool {
        let allocatable = Resources::parse(&node.status.allocatable);
        let changed = self.labels != node.metadata.labels
            || self.unschedulable != node.spec.unschedulable
            || self.taints != node.spec.taints
            || self.allocatable != allocatable;
        let images = node.status.images.iter();
        self.images =
            images.flat_map(|image| image.names.iter().map(|name| (name.clone(), image.size_bytes))).collect();
        self.labels = node.metadata.labels;
        self.unschedulable = node.spec.unschedulable;
        self.taints = node.spec.taints;
        self.allocatable = allocatable;
        changed
    }

    pub fn add(&mut self, info: Arc<PodInfo>) {
        self.used.add(&info.requests);
        self.scored_cpu_milli += info.scored_cpu_milli;
        self.scored_memory_bytes += info.scored_memory_bytes;
        self.shunning += usize::from(!info.anti_affinity.is_empty());
        self.pods.insert(info.key(), info);
    }

    pub fn remove(&mut self, key: &str) {
        if let Some(info) = self.pods.remove(key) {
            self.used.subtract(&info.requests);
            self.scored_cpu_milli -= info.scored_cpu_milli;
            self.scored_memory_bytes -= info.scored_memory_bytes;
            self.shunning -= usize::from(!info.anti_affinity.is_empty());
        }
    }
}

impl Snapshot {
    /// Nodes whose object is known.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        // A node that pods name but that has no object has no name here.
        self.nodes.values().filter(|node| !node.name.is_empty())
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|node| !node.name.is_empty())
    }

    /// Whether something changed that could let a pod in.
    pub fn set_node(&mut self, name: &str, node: Option<Node>) -> bool {
        let Some(node) = node else {
            if let Some(info) = self.nodes.get_mut(name) {
                info.name.clear();
            }
            self.drop_if_unused(name);
            return false;
        };
        let info = self.nodes.entry(name.to_owned()).or_default();
        let new = info.name.is_empty();
        info.name = name.to_owned();
        info.describe(node) || new
    }

    /// A pod that the API shows on a node.
    pub fn set_pod(&mut self, node: &str, info: PodInfo) {
        self.place(node, Arc::new(info), false);
    }

    /// A pod that was just given a node.
    pub fn assume(&mut self, node: &str, info: Arc<PodInfo>) {
        self.place(node, info, true);
    }

    pub fn is_assumed(&self, key: &str) -> bool {
        self.placed.get(key).is_some_and(|placed| placed.assumed)
    }

    /// The pod is gone, has ended or could not be bound. Whether it was on a node.
    pub fn remove_pod(&mut self, key: &str) -> bool {
        let Some(placed) = self.placed.remove(key) else { return false };
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.remove(key);
        }
        self.drop_if_unused(&placed.node);
        true
    }

    fn place(&mut self, node: &str, info: Arc<PodInfo>, assumed: bool) {
        let key = info.key();
        self.remove_pod(&key);
        self.nodes.entry(node.to_owned()).or_default().add(info);
        self.placed.insert(key, Placed { node: node.to_owned(), assumed });
    }

    fn drop_if_unused(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.name.is_empty() && node.pods.is_empty()) {
            self.nodes.remove(name);
        }
    }

    /// Every pod on a node, with that node.
    pub fn placed(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<PodInfo>)> {
        self.nodes().flat_map(|node| node.pods.values().map(move |info| (node, info)))
    }

    /// Every pod that shuns others, with its node. As a rule there are none, however many pods there are.
    pub fn shunning(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<PodInfo>)> {
        let nodes = self.nodes().filter(|node| node.shunning > 0);
        nodes.flat_map(|node| node.pods.values().map(move |info| (node, info)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(cpu: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu}}}))
            .expect("node")
    }

    fn pod(name: &str, cpu: &str) -> PodInfo {
        let pod = json!({"metadata": {"name": name, "namespace": "a"},
            "spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        PodInfo::of(&serde_json::from_value(pod).expect("pod"))
    }

    #[test]
    fn what_pods_use_follows_them_wherever_they_are() {
        let mut snapshot = Snapshot::default();
        // The pod is known before its node.
        snapshot.set_pod("n", pod("x", "1"));
        assert_eq!(snapshot.nodes().count(), 0);
        assert!(snapshot.set_node("n", Some(node("4"))));
        assert!(!snapshot.set_node("n", Some(node("4"))), "a heartbeat lets nobody in");
        snapshot.assume("n", Arc::new(pod("y", "500m")));
        assert_eq!(snapshot.node("n").expect("node").used.cpu_milli, 1500);
        snapshot.set_pod("n", pod("y", "500m"));
        assert!(!snapshot.is_assumed("a/y"));
        assert_eq!(snapshot.node("n").expect("node").used.pods, 2);
        assert!(snapshot.remove_pod("a/x"));
        assert!(!snapshot.remove_pod("a/x"));
        assert_eq!(snapshot.node("n").expect("node").used.cpu_milli, 500);
        snapshot.set_node("n", None);
        assert!(snapshot.node("n").is_none());
        snapshot.remove_pod("a/y");
        assert!(snapshot.nodes.is_empty());
    }
}
