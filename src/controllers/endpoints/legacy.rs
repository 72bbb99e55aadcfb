//! The older Endpoints object of each Service with a selector, for clients that still read it.

use super::{PodFacts, families, is_selecting, labels, selected, services_of_pod};
use crate::api::status::Result;
use crate::api::view::service::{EndpointPort, Service};
use crate::client::{DeleteOptions, PatchType};
use crate::client::{ENDPOINTS, Informer, PODS, SERVICES};
use crate::controllers::Tools;
use crate::controllers::runner::{Reconcile, Source};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Addresses beyond these are left out, and an annotation says so.
const ADDRESSES_LIMIT: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The object as it should be. Pods with equal ports share a subset.
fn endpoints(service: &Service, pods: &[PodFacts]) -> Value {
    let mut subsets: BTreeMap<String, Subset> = BTreeMap::new();
    let family = families(service)[0];
    let publish = service.spec.publish_not_ready_addresses;
    let (mut count, mut truncated) = (0, false);
    for pod in pods.iter().filter(|pod| publish || !pod.metadata.is_deleting()) {
        let Some(ip) = pod.address(family) else { continue };
        truncated = count >= ADDRESSES_LIMIT;
        if truncated {
            break;
        }
        count += 1;
        let mut ports = pod.ports(service);
        ports.sort_by(|one, other| (&one.name, one.port).cmp(&(&other.name, other.port)));
        let key = serde_json::to_string(&ports).expect("ports are plain data");
        let subset = subsets.entry(key).or_insert_with(|| Subset { ports, ..Subset::default() });
        let list = if publish || pod.is_ready() { &mut subset.ready } else { &mut subset.unready };
        list.push(address(service, pod, ip));
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": service.metadata.name, "namespace": service.metadata.namespace,
            "labels": labels(service, &[(MANAGED_BY, MANAGER)])},
    });
    if truncated {
        object["metadata"]["annotations"] = json!({OVER_CAPACITY: "truncated"});
    }
    if !subsets.is_empty() {
        object["subsets"] = subsets.into_values().map(Subset::into_object).collect();
    }
    object
}

#[derive(Default)]
struct Subset {
    ports: Vec<EndpointPort>,
    ready: Vec<Value>,
    unready: Vec<Value>,
}

impl Subset {
    fn into_object(self) -> Value {
        let mut object = json!({});
        for (name, mut list) in [("addresses", self.ready), ("notReadyAddresses", self.unready)] {
            list.sort_by_key(|one| one["ip"].to_string());
            if !list.is_empty() {
                object[name] = list.into();
            }
        }
        if !self.ports.is_empty() {
            object["ports"] = self.ports.iter().map(port).collect();
        }
        object
    }
}

fn port(port: &EndpointPort) -> Value {
    let mut object = json!(port);
    if port.name.is_empty()
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("name");
    }
    object
}

fn address(service: &Service, pod: &PodFacts, ip: &str) -> Value {
    let endpoint = pod.endpoint(service, ip, &BTreeMap::new());
    let mut address = json!({"ip": ip, "targetRef": endpoint.target_ref});
    if let Some(node) = endpoint.node_name {
        address["nodeName"] = node.into();
    }
    if let Some(hostname) = endpoint.hostname {
        address["hostname"] = hostname.into();
    }
    address
}

/// The merge patch from what there is; `None` when nothing we own differs.
fn patch(existing: &Value, wanted: &Value) -> Option<Value> {
    let part = |object: &Value, path: &str| object.pointer(path).cloned().unwrap_or(Value::Null);
    let same = |path: &str| part(existing, path) == part(wanted, path);
    let capacity = format!("/metadata/annotations/{}", OVER_CAPACITY.replace('/', "~1"));
    if same("/subsets") && same("/metadata/labels") && same(&capacity) {
        return None;
    }
    let mut labels = part(wanted, "/metadata/labels");
    for key in existing.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
        if labels.get(key).is_none() {
            labels[key] = Value::Null;
        }
    }
    let annotations = json!({OVER_CAPACITY: part(wanted, &capacity)});
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}, "subsets": part(wanted, "/subsets")}))
}

pub struct Controller {
    tools: Tools,
    services: Informer,
    pods: Informer,
    endpoints: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let (services, pods) = (tools.informers.all(SERVICES), tools.informers.all(PODS));
        let endpoints = tools.informers.all(ENDPOINTS);
        let of_pod = services.clone();
        let sources = vec![
            Source::own(&services),
            Source::own(&endpoints),
            Source::new(&pods, move |change| services_of_pod(change, &of_pod)),
        ];
        (Arc::new(Self { tools: tools.clone(), services, pods, endpoints }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let existing = self.endpoints.by_key(key).map(|item| item.object()).transpose()?;
        let Some(item) = self.services.by_key(key) else {
            return self.remove(namespace, name, existing.as_ref()).await;
        };
        let service: Service = item.view()?;
        if !is_selecting(&service) {
            return Ok(None);
        }
        let wanted = endpoints(&service, &selected(&self.pods, &service));
        let client = &self.tools.client;
        match existing {
            None => match client.create(ENDPOINTS, namespace, wanted).await {
                // The cache will show it.
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            },
            Some(existing) => {
                if let Some(patch) = patch(&existing, &wanted) {
                    client.patch(ENDPOINTS, namespace, name, "", PatchType::Merge, patch).await?;
                }
            }
        }
        Ok(None)
    }

    /// With its Service only an object of ours goes; people's own stay.
    async fn remove(&self, namespace: &str, name: &str, existing: Option<&Value>) -> Result<Option<Duration>> {
        let path = format!("/metadata/labels/{}", MANAGED_BY.replace('/', "~1"));
        let ours = existing.and_then(|object| object.pointer(&path)).is_some_and(|manager| manager == MANAGER);
        if ours {
            match self.tools.client.delete(ENDPOINTS, namespace, name, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }

    /// Every node hears of each change: of a large Service they are told together.
    fn rests(&self) -> u32 {
        10
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::endpoints::tests::{pod, service};

    #[test]
    fn subsets_tell_ready_from_unready_and_leave_out_the_leaving() {
        let pods = [
            pod("p2", json!({})),
            pod("p1", json!({})),
            pod("p3", json!({"status": {"conditions": null}})),
            pod("p4", json!({"metadata": {"deletionTimestamp": "t"}})),
        ];
        let object = endpoints(&service(json!({})), &pods);
        let subset = &object["subsets"][0];
        assert_eq!(subset["addresses"][0]["ip"], "10.42.0.1");
        assert_eq!(subset["addresses"][1]["targetRef"]["name"], "p2");
        assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.42.0.3");
        assert_eq!(subset["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(object["subsets"].as_array().map(Vec::len), Some(1));
        assert!(endpoints(&service(json!({})), &[]).get("subsets").is_none());
    }

    #[test]
    fn only_differences_are_written() {
        let object = endpoints(&service(json!({})), &[pod("p1", json!({}))]);
        assert_eq!(patch(&object, &object), None);
        let empty = endpoints(&service(json!({"metadata": {"labels": null}})), &[]);
        let patch = patch(&object, &empty).expect("a change");
        assert_eq!((&patch["subsets"], &patch["metadata"]["labels"]["team"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn too_many_addresses_are_cut() {
        let pods: Vec<PodFacts> = (0..1001).map(|n| pod(&format!("p{n}"), json!({}))).collect();
        let object = endpoints(&service(json!({})), &pods);
        assert_eq!(object["subsets"][0]["addresses"].as_array().map(Vec::len), Some(ADDRESSES_LIMIT));
        assert_eq!(object["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    }
}
