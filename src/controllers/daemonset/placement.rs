//! Which nodes a daemon runs on, and the pod it has there. Pure.

use crate::api::object::ObjectExt;
use crate::api::status::{Result, Status};
use crate::api::view::meta::Meta;
use crate::api::view::node::Taint;
use crate::api::view::pod::{PodSpec, Toleration};
use crate::api::view::workload::DaemonSet;
use crate::controllers::history::HASH_LABEL;
use crate::controllers::pods::{PodFacts, pod_from_template};
use serde::Deserialize;
use serde_json::{Value, json};

/// Kept by the API on DaemonSets; older than revisions.
pub const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
pub const GENERATION_LABEL: &str = "pod-template-generation";

/// What decides about a node; the rest of it is skipped when it is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    pub metadata: Meta,
    pub spec: NodeSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(deserialize_with = "crate::api::view::null_as_default")]
    pub taints: Vec<Taint>,
}

/// Whether a daemon's pod should be made on a node, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    pub runs: bool,
    pub stays: bool,
}

/// `spec` is that of the pods, their tolerations included.
pub fn fit(spec: &PodSpec, node: &NodeFacts) -> Fit {
    let name = &node.metadata.name;
    let named = spec.node_name.is_empty() || spec.node_name == *name;
    if !named || !spec.allows_node(name, &node.metadata.labels) {
        return Fit { runs: false, stays: false };
    }
    let bears = |effects: &[&str]| {
        let mut binding = node.spec.taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
        binding.all(|taint| spec.tolerates(taint))
    };
    Fit { runs: bears(&["NoSchedule", "NoExecute"]), stays: bears(&["NoExecute"]) }
}

/// Daemons stay on nodes that others leave: their pods belong to the node.
fn tolerations(host_network: bool) -> Vec<Toleration> {
    let tolerate = |key: &str, effect: &str| Toleration {
        key: format!("node.kubernetes.io/{key}"),
        operator: "Exists".into(),
        effect: effect.into(),
        ..Toleration::default()
    };
    let mut all = vec![tolerate("not-ready", "NoExecute"), tolerate("unreachable", "NoExecute")];
    let pressures = ["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"];
    all.extend(pressures.map(|key| tolerate(key, "NoSchedule")));
    if host_network {
        all.push(tolerate("network-unavailable", "NoSchedule"));
    }
    all
}

/// The spec of the template as its pods have it.
pub fn pod_spec(set: &DaemonSet) -> Result<PodSpec> {
    let spec = set.spec.template.get("spec").unwrap_or(&Value::Null);
    let mut spec = Option::<PodSpec>::deserialize(spec).map_err(Status::internal)?.unwrap_or_default();
    let own = tolerations(spec.host_network);
    spec.tolerations.extend(own);
    Ok(spec)
}

/// What all pods of this revision have in common.
pub fn pod_template(set: &DaemonSet, hash: &str) -> Value {
    let mut template = set.spec.template.clone();
    template.set(&["metadata", "labels", HASH_LABEL], hash.into());
    if let Some(generation) = set.metadata.annotations.get(GENERATION_ANNOTATION) {
        template.set(&["metadata", "labels", GENERATION_LABEL], generation.as_str().into());
    }
    let host_network = template.at(&["spec", "hostNetwork"]) == Some(&Value::Bool(true));
    let mut all: Vec<Value> =
        template.at(&["spec", "tolerations"]).and_then(Value::as_array).cloned().unwrap_or_default();
    for toleration in tolerations(host_network) {
        let wanted = json!({"key": toleration.key, "operator": "Exists", "effect": toleration.effect});
        let same =
            |one: &Value| ["key", "operator", "effect", "value"].iter().all(|part| one.get(part) == wanted.get(part));
        match all.iter_mut().find(|one| same(one)) {
            Some(one) => *one = wanted,
            None => all.push(wanted),
        }
    }
    template.set(&["spec", "tolerations"], all.into());
    template
}

/// The pod for one node. The scheduler binds it there: its node affinity allows no other.
pub fn pod_on(template: &Value, set: &DaemonSet, reference: Value, node: &str) -> Value {
    let mut pod = pod_from_template(template, &set.metadata, reference);
    let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
    let path = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    pod.set(&path, json!({"nodeSelectorTerms": terms}));
    pod
}

/// The node a pod is on or is meant for.
pub fn node_of(pod: &PodFacts) -> Option<&str> {
    if !pod.node().is_empty() {
        return Some(pod.node());
    }
    let terms = &pod.spec.affinity.as_ref()?.required_nodes()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| &term.match_fields);
    let named =
        fields.find(|field| field.key == "metadata.name" && field.operator == "In" && field.values.len() == 1)?;
    named.values.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "a", "uid": "u", "annotations": {GENERATION_ANNOTATION: "2"}},
            "spec": {"template": {"metadata": {"labels": {"app": "d"}}, "spec": spec}},
        }))
        .expect("set")
    }

    fn node(taints: Value) -> NodeFacts {
        serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}}),
        )
        .expect("node")
    }

    #[test]
    fn a_daemon_runs_where_its_template_and_the_taints_allow() {
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let (yes, stays, no) =
            (Fit { runs: true, stays: true }, Fit { runs: false, stays: true }, Fit { runs: false, stays: false });
        let field = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]}}});
        for (spec, taints, expected) in [
            (json!({}), json!(null), yes),
            (json!({"nodeSelector": {"disk": "ssd"}}), json!([]), yes),
            (json!({"nodeSelector": {"disk": "hdd"}}), json!([]), no),
            (json!({"nodeName": "m"}), json!([]), no),
            (json!({"affinity": field}), json!([]), no),
            (json!({}), taint("own", "NoSchedule"), stays),
            (json!({}), taint("own", "PreferNoSchedule"), yes),
            (json!({}), taint("own", "NoExecute"), no),
            (json!({}), taint("node.kubernetes.io/unreachable", "NoExecute"), yes),
            (json!({}), taint("node.kubernetes.io/unschedulable", "NoSchedule"), yes),
            (json!({}), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), stays),
            (json!({"hostNetwork": true}), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), yes),
        ] {
            assert_eq!(
                fit(&pod_spec(&set(spec.clone())).expect("spec"), &node(taints.clone())),
                expected,
                "{spec} {taints}"
            );
        }
    }

    #[test]
    fn a_pod_is_made_for_its_node() {
        let own = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 5});
        let set = set(json!({"tolerations": [own], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": []}]}}}}));
        let pod = pod_on(&pod_template(&set, "h"), &set, json!({"uid": "u"}), "n");
        assert_eq!(pod["metadata"]["generateName"], "d-");
        assert_eq!(pod["metadata"]["labels"], json!({"app": "d", HASH_LABEL: "h", GENERATION_LABEL: "2"}));
        let tolerations = pod["spec"]["tolerations"].as_array().expect("tolerations");
        assert_eq!(tolerations.len(), 6);
        assert_eq!(tolerations[0].get("tolerationSeconds"), None, "a daemon is not evicted");
        let facts: PodFacts = serde_json::from_value(pod).expect("pod");
        assert_eq!(node_of(&facts), Some("n"));
        let required = facts.spec.affinity.as_ref().and_then(|affinity| affinity.required_nodes()).expect("required");
        assert_eq!(required.node_selector_terms.len(), 1, "the template's terms were checked already");
    }
}
