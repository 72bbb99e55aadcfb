//! What of an object the replica keeps, so that only news is written: no managed fields, no revisions, no status
//! but what the node itself needs of others'. Pure.

use crate::client::{NODES, PODS, Resource, SERVICES};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Copies of the object in itself, and the time of the last change to endpoints: noise for a node.
const NOISE: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

type Fields<'a> = BTreeMap<Cow<'a, str>, Cow<'a, RawValue>>;

/// The object as it is stored; one that cannot be read is kept as it is.
pub fn kept(resource: Resource, object: &Bytes) -> Bytes {
    reduce(resource, object).map_or_else(|_| object.clone(), Bytes::from)
}

fn reduce(resource: Resource, object: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut fields: Fields = parse(object)?;
    if let Some(metadata) = fields.get_mut("metadata") {
        *metadata = Cow::Owned(reduce_metadata(resource, metadata)?);
    }
    let status = fields.remove("status");
    let status = match status {
        Some(status) if resource == SERVICES => Some(status),
        Some(status) if resource == NODES => Some(Cow::Owned(only(&status, "addresses")?)),
        _ => None,
    };
    fields.extend(status.map(|status| (Cow::Borrowed("status"), status)));
    serde_json::to_vec(&fields)
}

fn reduce_metadata(resource: Resource, metadata: &RawValue) -> serde_json::Result<Box<RawValue>> {
    let mut fields: Fields = parse(metadata.get().as_bytes())?;
    fields.remove("managedFields");
    fields.remove("resourceVersion");
    // A pod may show its annotations to its containers: they stay as they are.
    if resource != PODS
        && let Some(annotations) = fields.get_mut("annotations")
    {
        let mut all: Fields = parse(annotations.get().as_bytes())?;
        all.retain(|name, _| !NOISE.contains(&name.as_ref()));
        *annotations = Cow::Owned(serde_json::value::to_raw_value(&all)?);
    }
    serde_json::value::to_raw_value(&fields)
}

fn only(object: &RawValue, name: &str) -> serde_json::Result<Box<RawValue>> {
    let mut fields: Fields = parse(object.get().as_bytes())?;
    fields.retain(|field, _| field == name);
    serde_json::value::to_raw_value(&fields)
}

fn parse(bytes: &[u8]) -> serde_json::Result<Fields<'_>> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(bytes)?;
    Ok(fields.into_iter().map(|(name, value)| (Cow::Owned(name), Cow::Borrowed(value))).collect())
}

/// A stored object with a status put into it.
pub fn with_status(object: &Bytes, status: &Bytes) -> Bytes {
    let join = || {
        let mut fields = parse(object)?;
        fields.insert(Cow::Borrowed("status"), Cow::Borrowed(serde_json::from_slice::<&RawValue>(status)?));
        serde_json::to_vec(&fields)
    };
    join().map_or_else(|_| object.clone(), Bytes::from)
}

/// What of a pod's own status is worth a write: whether it has ended, its addresses, what each container was
/// started from and how it ended for good. A count of restarts alone is written when it has doubled.
pub fn status_news(status: &serde_json::Value) -> Vec<u8> {
    let phase = status["phase"].as_str().filter(|phase| matches!(*phase, "Succeeded" | "Failed"));
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| status[list].as_array());
    let containers = lists.into_iter().flatten().flatten().map(|container| {
        let restarts = container["restartCount"].as_u64().unwrap_or(0);
        let ran = container["containerID"].as_str().is_some_and(|id| !id.is_empty());
        let end = &container["state"]["terminated"]["exitCode"];
        let weight = u64::BITS - restarts.leading_zeros();
        serde_json::json!([container["name"], container["imageID"], ran, end, weight])
    });
    let containers: Vec<serde_json::Value> = containers.collect();
    serde_json::json!([phase, status["podIPs"], containers]).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ENDPOINTSLICES;
    use serde_json::json;

    fn reduced(resource: Resource, object: serde_json::Value) -> serde_json::Value {
        serde_json::from_slice(&kept(resource, &Bytes::from(object.to_string()))).unwrap()
    }

    #[test]
    fn what_others_report_all_the_time_is_not_kept() {
        let meta = |more: serde_json::Value| {
            let mut meta = json!({"name": "x", "uid": "u", "labels": {"a": "b"}});
            meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            meta
        };
        let noise = json!({"resourceVersion": "7", "managedFields": [{}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}});
        let annotated = meta(json!({"annotations": {}}));
        let cases = [
            (
                PODS,
                json!({"kind": "Pod", "spec": {"a": 1}, "status": {"phase": "Running"}}),
                json!({"kind": "Pod", "spec": {"a": 1}}),
            ),
            (
                NODES,
                json!({"spec": {}, "status": {"addresses": [1], "conditions": [2], "images": [3]}}),
                json!({"spec": {}, "status": {"addresses": [1]}}),
            ),
            (SERVICES, json!({"status": {"loadBalancer": {}}}), json!({"status": {"loadBalancer": {}}})),
            (ENDPOINTSLICES, json!({"endpoints": [1]}), json!({"endpoints": [1]})),
        ];
        for (resource, mut object, mut want) in cases {
            object["metadata"] = meta(noise.clone());
            want["metadata"] =
                if resource == PODS { meta(json!({"annotations": noise["annotations"]})) } else { annotated.clone() };
            assert_eq!(reduced(resource, object), want, "{}", resource.plural);
        }
    }

    #[test]
    fn equal_news_are_equal_bytes() {
        let at = |revision: &str, count: u64| {
            Bytes::from(
                json!({"metadata": {"name": "n", "resourceVersion": revision}, "spec": {"podCIDR": "10.42.1.0/24"},
                "status": {"conditions": [{"lastHeartbeatTime": count}]}})
                .to_string(),
            )
        };
        assert_eq!(kept(NODES, &at("1", 1)), kept(NODES, &at("2", 2)));
        assert_eq!(kept(NODES, &Bytes::from_static(b"no object")), "no object");
    }

    #[test]
    fn a_status_is_put_back() {
        let pod = Bytes::from_static(br#"{"metadata":{"name":"x"},"spec":{}}"#);
        let joined = with_status(&pod, &Bytes::from_static(br#"{"phase":"Running"}"#));
        assert_eq!(joined, r#"{"metadata":{"name":"x"},"spec":{},"status":{"phase":"Running"}}"#);
    }

    #[test]
    fn only_a_status_that_a_cold_boot_needs_is_news() {
        let status = |phase: &str, restarts: u64, state: serde_json::Value| {
            json!({"phase": phase, "podIPs": [{"ip": "10.42.0.2"}], "conditions": [restarts], "containerStatuses":
                [{"name": "c", "containerID": format!("edgelet://{restarts}"), "imageID": "i", "restartCount": restarts,
                  "state": state}]})
        };
        let running = || json!({"running": {}});
        let base = status_news(&status("Running", 4, running()));
        assert_eq!(base, status_news(&status("Running", 7, running())));
        assert_eq!(base, status_news(&status("Running", 4, json!({"waiting": {"reason": "CrashLoopBackOff"}}))));
        assert_ne!(base, status_news(&status("Running", 8, running())));
        assert_ne!(base, status_news(&status("Succeeded", 4, running())));
        assert_ne!(base, status_news(&status("Running", 4, json!({"terminated": {"exitCode": 0}}))));
    }
}
