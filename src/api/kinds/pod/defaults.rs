//! Defaults of pods that depend on other fields; plain values are in the scheme's data.

use crate::api::object::{Object, ObjectExt};
use serde_json::{Map, Value, json};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(super) fn default_pod(pod: &mut Object) {
    if let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) {
        default_spec(spec);
        for field in ["initContainers", "containers"] {
            items(spec, field).for_each(requests_from_limits);
        }
        requests_from_limits(spec);
    }
}

/// What pods and pod templates have in common.
pub(in crate::api::kinds) fn default_spec(spec: &mut Value) {
    for field in CONTAINERS {
        items(spec, field).for_each(pull_policy);
    }
    for volume in items(spec, "volumes") {
        // A volume that says nothing but its name is an empty directory.
        if volume.as_object().is_some_and(|volume| volume.keys().all(|key| key == "name")) {
            volume.set(&["emptyDir"], json!({}));
        }
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for field in ["initContainers", "containers"] {
            items(spec, field).flat_map(|container| items(container, "ports")).for_each(host_port);
        }
    }
    mirror_service_account(spec);
}

fn items<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// `Always` for `latest`, whether said or meant; else `IfNotPresent`.
fn pull_policy(container: &mut Value) {
    if container.str_at(&["imagePullPolicy"]).is_empty() && container.is_object() {
        let policy = if is_latest(container.str_at(&["image"])) { "Always" } else { "IfNotPresent" };
        container.set(&["imagePullPolicy"], policy.into());
    }
}

fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, ""), |(name, digest)| (name, digest));
    // A colon before the last slash is that of the registry's port.
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_empty(),
    }
}

fn host_port(port: &mut Value) {
    if port.int_at(&["hostPort"]).unwrap_or(0) == 0
        && let Some(number) = port.get("containerPort").cloned()
    {
        port.set(&["hostPort"], number);
    }
}

/// Who limits a resource and asks for none of it asks for the limit.
fn requests_from_limits(holder: &mut Value) {
    let Some(limits) = holder.at(&["resources", "limits"]).and_then(Value::as_object).cloned() else { return };
    let mut requests = match holder.unset(&["resources", "requests"]) {
        Some(Value::Object(requests)) => requests,
        _ => Map::new(),
    };
    for (resource, limit) in limits {
        requests.entry(resource).or_insert(limit);
    }
    if !requests.is_empty() {
        holder.set(&["resources", "requests"], Value::Object(requests));
    }
}

/// `serviceAccount` is the older name of `serviceAccountName`; both are always written.
fn mirror_service_account(spec: &mut Value) {
    let name = match spec.str_at(&["serviceAccountName"]) {
        "" => spec.str_at(&["serviceAccount"]),
        name => name,
    };
    if !name.is_empty() {
        let name = Value::from(name);
        spec.set(&["serviceAccount"], name.clone());
        spec.set(&["serviceAccountName"], name);
    }
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn an_image_without_tag_or_digest_is_latest() {
        for image in ["busybox", "a.b:5000/busybox", "busybox:latest", "", "busybox:latest@sha256:0"] {
            assert!(is_latest(image), "{image}");
        }
        for image in ["busybox:1", "a.b:5000/busybox:1", "busybox@sha256:0", "busybox:1@sha256:0"] {
            assert!(!is_latest(image), "{image}");
        }
    }
}
