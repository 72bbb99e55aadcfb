//! The downward API: fields and resources of a pod as text, for variables and volumes. Pure.

use crate::api::quantity::Quantity;
use crate::api::view::pod::{Pod, ResourceFieldRef};
use serde_json::Value;
use std::collections::BTreeMap;

/// A pod and what only its node knows of it.
#[derive(Clone, Copy)]
pub struct Downward<'a> {
    pub pod: &'a Pod,
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    /// The node's allocatable resources: the limit of a container that has none.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// A `fieldRef`. Labels and annotations as a whole are for volumes.
pub fn field(downward: &Downward, path: &str) -> Result<String, String> {
    let meta = &downward.pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(values.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => downward.pod.spec.node_name.clone(),
        "spec.serviceAccountName" => downward.pod.spec.service_account_name.clone(),
        "status.hostIP" => downward.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => downward.host_ips.join(","),
        "status.podIP" => downward.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => downward.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['a']` by parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once("['")?;
    Some((map, key.strip_suffix("']")?))
}

/// `key="value"` a line, sorted, quoted as Go does.
fn lines(values: &BTreeMap<String, String>) -> String {
    let quoted: Vec<String> = values.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    quoted.join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::from('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A `resourceFieldRef`, divided and rounded up. `container` is meant when the reference names none.
pub fn resource(downward: &Downward, reference: &ResourceFieldRef, container: &str) -> Result<String, String> {
    let name = if reference.container_name.is_empty() { container } else { &reference.container_name };
    let spec = &downward.pod.spec;
    let mut all = spec.containers.iter().chain(&spec.init_containers);
    let container = all.find(|container| container.name == name);
    let container = container.ok_or_else(|| format!("container {name} not found"))?;
    let unsupported = || format!("unsupported container resource : {}", reference.resource);
    let (side, resource) = reference.resource.split_once('.').ok_or_else(unsupported)?;
    let given = |map: &BTreeMap<String, Value>| map.get(resource).and_then(|value| Quantity::from_value(value).ok());
    let quantity = match side {
        "limits" => given(&container.resources.limits)
            .filter(|limit| !limit.is_zero())
            .or_else(|| downward.allocatable.get(resource).copied()),
        "requests" => given(&container.resources.requests),
        _ => return Err(unsupported()),
    };
    Ok(divided(quantity.unwrap_or(Quantity::ZERO), reference, resource).to_string())
}

fn divided(quantity: Quantity, reference: &ResourceFieldRef, resource: &str) -> i64 {
    let divisor = reference.divisor.as_ref().and_then(|divisor| Quantity::from_value(divisor).ok());
    let divisor = divisor.filter(|divisor| !divisor.is_zero()).unwrap_or(Quantity::from_units(1));
    let (value, by) = match resource {
        "cpu" => (quantity.milli_value(), divisor.milli_value()),
        _ => (quantity.value(), divisor.value()),
    };
    value.saturating_add(by - 1) / by.max(1)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::LazyLock;

    static ALLOCATABLE: LazyLock<BTreeMap<String, Quantity>> = LazyLock::new(|| {
        BTreeMap::from([("cpu".into(), Quantity::from_units(4)), ("memory".into(), Quantity::from_bytes(1 << 30))])
    });
    static POD_IPS: LazyLock<Vec<String>> = LazyLock::new(|| vec!["10.42.0.5".into(), "fd00::5".into()]);
    static HOST_IPS: LazyLock<Vec<String>> = LazyLock::new(|| vec!["192.0.2.1".into()]);

    /// A pod on a node with one address, four CPUs and a gibibyte.
    pub fn downward(pod: &Pod) -> Downward<'_> {
        Downward { pod, pod_ips: &POD_IPS, host_ips: &HOST_IPS, allocatable: &ALLOCATABLE }
    }

    fn pod() -> Pod {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"a": "1", "b": "x\"y\nz"}, "annotations": {"k/l": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [{"name": "c", "resources": {
                "limits": {"memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}}]},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn fields() {
        let pod = pod();
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\\nz\""),
            ("metadata.labels['a']", "1"),
            ("metadata.annotations['k/l']", "v"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.1"),
            ("status.podIP", "10.42.0.5"),
            ("status.podIPs", "10.42.0.5,fd00::5"),
        ] {
            assert_eq!(field(&downward(&pod), path).as_deref(), Ok(want), "{path}");
        }
        assert!(field(&downward(&pod), "spec.hostname").is_err());
    }

    #[test]
    fn resources() {
        let pod = pod();
        for (name, divisor, want) in [
            ("limits.memory", "1", "67108864"),
            ("limits.memory", "1Mi", "64"),
            ("limits.cpu", "1", "4"),
            ("limits.cpu", "1m", "4000"),
            ("requests.cpu", "1", "1"),
            ("requests.cpu", "1m", "250"),
            ("requests.memory", "1Gi", "1"),
            ("requests.ephemeral-storage", "0", "0"),
        ] {
            let reference = json!({"resource": name, "divisor": divisor});
            let reference = serde_json::from_value(reference).expect("a reference");
            assert_eq!(resource(&downward(&pod), &reference, "c").as_deref(), Ok(want), "{name} {divisor}");
        }
    }
}
