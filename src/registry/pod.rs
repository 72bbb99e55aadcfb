//! What only pods have: binding to a node.

use super::update::{ATTEMPTS, Target};
use super::{Registry, encode};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status, Subject};
use crate::clock;
use serde_json::{Value, json};

/// What a successful POST to a subresource answers.
pub(super) fn done() -> Object {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

impl Registry {
    pub(super) async fn bind(&self, target: Target<'_>, binding: Object) -> Result<Object> {
        let node = binding.str_at(&["target", "name"]).to_owned();
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        for _ in 0..ATTEMPTS {
            let existing = self.stored(target.kind, target.namespace, target.name).await?;
            let existing = existing.ok_or_else(|| target.not_found())?;
            let old = encode::decode(target.kind, &existing)?;
            check_binding(target, &binding, &old)?;
            let new = bound(&old, &binding, &node, &clock::rfc3339(self.clock.now()));
            if self.replace(target, &existing, &old, new).await?.is_some() {
                return Ok(done());
            }
        }
        Err(target.modified())
    }
}

fn check_binding(target: Target, binding: &Object, pod: &Object) -> Result<()> {
    let name = target.name;
    let conflict = |why: String| Err(Status::conflict(Subject { group: "", kind: "pods/binding", name }, &why));
    let (node, uid) = (pod.str_at(&["spec", "nodeName"]), binding.uid());
    if !uid.is_empty() && uid != pod.uid() {
        return conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", pod.uid()));
    }
    if pod.deletion_timestamp().is_some() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if !node.is_empty() {
        return conflict(format!("pod {name} is already assigned to node \"{node}\""));
    }
    if pod.at(&["spec", "schedulingGates"]).and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    Ok(())
}

/// The pod on its node; labels and annotations of the binding become the pod's.
fn bound(pod: &Object, binding: &Object, node: &str, now: &str) -> Object {
    let mut pod = pod.clone();
    pod.set(&["spec", "nodeName"], Value::from(node));
    for field in ["annotations", "labels"] {
        for (key, value) in binding.at(&["metadata", field]).and_then(Value::as_object).into_iter().flatten() {
            pod.set(&["metadata", field, key], value.clone());
        }
    }
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions = match pod.unset(&["status", "conditions"]) {
        Some(Value::Array(conditions)) => conditions,
        _ => Vec::new(),
    };
    match conditions.iter_mut().find(|one| one.str_at(&["type"]) == "PodScheduled") {
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
    pod.set(&["status", "conditions"], Value::Array(conditions));
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_pod_is_scheduled() {
        let pod = json!({"spec": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        let binding = json!({"metadata": {"labels": {"zone": "a"}}, "target": {"name": "n"}});
        let pod = bound(&pod, &binding, "n", "2026-01-01T00:00:00Z");
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["labels"]["zone"], "a");
        assert_eq!(pod["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod["status"]["conditions"][0]["status"], "True");
    }
}
