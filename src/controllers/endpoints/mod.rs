//! Which pods stand behind a Service, and on which ports: shared by EndpointSlices and the older Endpoints.

pub mod legacy;
pub mod slices;

use crate::api::view::meta::{Condition, Meta};
use crate::api::view::pod::{ContainerPort, PodIp};
use crate::api::view::service::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, Named, Service, ServicePort, TargetRef,
};
use crate::client::informer::Change;
use crate::client::{Informer, Item};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// What of a pod matters here; the rest is skipped when it is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFacts {
    pub metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    hostname: String,
    subdomain: String,
    containers: Vec<Ports>,
    init_containers: Vec<Ports>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ports {
    ports: Vec<ContainerPort>,
    restart_policy: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
}

impl PodFacts {
    fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True")
    }

    /// Ended pods serve nobody.
    fn can_serve(&self) -> bool {
        !matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    fn address(&self, family: &str) -> Option<&str> {
        let wanted = |ip: &&PodIp| ip.ip.contains(':') == (family == "IPv6");
        self.status.pod_ips.iter().find(wanted).map(|ip| ip.ip.as_str())
    }

    /// The number behind a Service's target port.
    fn port(&self, service: &ServicePort) -> Option<u16> {
        match &service.target_port {
            Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
            Value::String(name) if !name.is_empty() => {
                if let Ok(number) = name.parse() {
                    return Some(number);
                }
                let sidecars = self.spec.init_containers.iter().filter(|one| one.restart_policy == "Always");
                let mut ports = self.spec.containers.iter().chain(sidecars).flat_map(|one| &one.ports);
                ports
                    .find(|port| port.name == *name && protocol(&port.protocol) == protocol(&service.protocol))
                    .map(|port| port.container_port)
            }
            _ => Some(service.port),
        }
    }

    fn ports(&self, service: &Service) -> Vec<EndpointPort> {
        let known = |port: &ServicePort| {
            Some(EndpointPort {
                name: port.name.clone(),
                protocol: protocol(&port.protocol).to_owned(),
                port: Some(self.port(port)?),
                app_protocol: port.app_protocol.clone(),
            })
        };
        service.spec.ports.iter().filter_map(known).collect()
    }

    fn endpoint(&self, service: &Service, address: &str, zones: &Zones) -> Endpoint {
        let (serving, terminating) = (self.is_ready(), self.metadata.is_deleting());
        let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
        let zone = zones.get(&self.spec.node_name).cloned();
        let node = Some(self.spec.node_name.clone()).filter(|name| !name.is_empty());
        let hints = hints(&service.spec.traffic_distribution, zone.as_ref(), node.as_ref()).filter(|_| ready);
        let named = !self.spec.hostname.is_empty() && self.spec.subdomain == service.metadata.name;
        Endpoint {
            addresses: vec![address.to_owned()],
            conditions: EndpointConditions {
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(terminating),
            },
            hostname: named.then(|| self.spec.hostname.clone()),
            node_name: node,
            zone,
            hints,
            target_ref: Some(TargetRef {
                kind: "Pod".to_owned(),
                namespace: self.metadata.namespace.clone(),
                name: self.metadata.name.clone(),
                uid: self.metadata.uid.clone(),
            }),
        }
    }
}

/// Whom an endpoint is for: KEP-2433 and KEP-3015.
fn hints(distribution: &str, zone: Option<&String>, node: Option<&String>) -> Option<EndpointHints> {
    let named = |name: Option<&String>| name.map(|name| Named { name: name.clone() }).into_iter().collect::<Vec<_>>();
    let hints = match distribution {
        "PreferClose" | "PreferSameZone" => EndpointHints { for_zones: named(zone), for_nodes: Vec::new() },
        "PreferSameNode" => EndpointHints { for_zones: named(zone), for_nodes: named(node) },
        _ => return None,
    };
    Some(hints).filter(|hints| !hints.for_zones.is_empty() || !hints.for_nodes.is_empty())
}

fn protocol(written: &str) -> &str {
    if written.is_empty() { "TCP" } else { written }
}

/// Zones by node name.
pub type Zones = BTreeMap<String, String>;

pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Whether endpoints are computed for the Service at all.
fn is_selecting(service: &Service) -> bool {
    service.spec.r#type != "ExternalName" && !service.spec.selector.is_empty()
}

fn selects(service: &Service, pod: &Meta) -> bool {
    service.spec.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn families(service: &Service) -> Vec<&str> {
    match service.spec.ip_families.as_slice() {
        [] => vec!["IPv4"],
        families => families.iter().map(String::as_str).collect(),
    }
}

/// Labels of the Service, its name and what else every object about it carries.
fn labels(service: &Service, more: &[(&str, &str)]) -> Map<String, Value> {
    let reserved =
        |key: &str| matches!(key, SERVICE_NAME | HEADLESS) || key.starts_with("endpointslice.kubernetes.io/");
    let own = service.metadata.labels.iter().filter(|(key, _)| !reserved(key));
    let mut labels: Map<String, Value> = own.map(|(key, value)| (key.clone(), json!(value))).collect();
    labels.extend(more.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    if service.is_headless() {
        labels.insert(HEADLESS.to_owned(), "".into());
    }
    labels
}

/// The pods a Service selects.
fn selected(pods: &Informer, service: &Service) -> Vec<PodFacts> {
    let facts = pods.list_namespace(&service.metadata.namespace).into_iter().filter_map(|item| item.view().ok());
    facts.filter(|pod: &PodFacts| pod.can_serve() && selects(service, &pod.metadata)).collect()
}

/// The Services that a change of a pod concerns; none when nothing changed that endpoints show.
fn services_of_pod(change: &Change, services: &Informer) -> Vec<String> {
    let read = |item: &Option<Item>| {
        let mut facts = item.as_ref()?.view::<PodFacts>().ok()?;
        facts.metadata.resource_version.clear();
        facts.metadata.generation = 0;
        facts.metadata.annotations.clear();
        Some(facts)
    };
    let (old, new) = (read(&change.old), read(&change.new));
    let Some(namespace) = change.key.split('/').next().filter(|_| old != new) else { return Vec::new() };
    let concerns = |service: &Service| {
        is_selecting(service) && [&old, &new].into_iter().flatten().any(|pod| selects(service, &pod.metadata))
    };
    let candidates = services.list_namespace(namespace).into_iter().filter_map(|item| item.view::<Service>().ok());
    candidates.filter(concerns).map(|service| service.metadata.key()).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn service(extra: Value) -> Service {
        let mut object = json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"team": "x"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("service")
    }

    pub fn pod(name: &str, extra: Value) -> PodFacts {
        let number = name.trim_start_matches(|c: char| !c.is_ascii_digit());
        let mut object = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.42.0.{number}")}],
                "conditions": [{"type": "Ready", "status": "True"}]}});
        json_patch::merge(&mut object, &extra);
        serde_json::from_value(object).expect("pod")
    }

    #[test]
    fn target_ports_are_numbers_names_or_the_port_itself() {
        let pod = pod(
            "p1",
            json!({"spec": {"initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9}]}]}}),
        );
        for (target, protocol, expected) in [
            (json!(70), "TCP", Some(70)),
            (json!("web"), "TCP", Some(8080)),
            (json!("web"), "UDP", None),
            (json!("side"), "TCP", Some(9)),
            (json!("none"), "TCP", None),
            (json!(null), "TCP", Some(80)),
        ] {
            let port = json!({"port": 80, "targetPort": target, "protocol": protocol});
            assert_eq!(pod.port(&serde_json::from_value(port).expect("port")), expected, "{target}");
        }
    }

    #[test]
    fn conditions_follow_readiness_and_termination() {
        let leaving = json!({"metadata": {"deletionTimestamp": "t"}});
        let unready = json!({"status": {"conditions": null}});
        let publish = json!({"spec": {"publishNotReadyAddresses": true}});
        for (service_extra, pod_extra, expected) in [
            (json!({}), json!({}), (true, true, false)),
            (json!({}), unready.clone(), (false, false, false)),
            (json!({}), leaving.clone(), (false, true, true)),
            (publish, unready, (true, false, false)),
        ] {
            let endpoint = pod("p1", pod_extra).endpoint(&service(service_extra), "1.2.3.4", &Zones::new());
            let conditions = endpoint.conditions;
            let found = (conditions.ready, conditions.serving, conditions.terminating);
            assert_eq!(found, (Some(expected.0), Some(expected.1), Some(expected.2)));
        }
    }

    #[test]
    fn a_pod_of_the_subdomain_has_its_hostname_and_zone() {
        let zones = Zones::from([("n".to_owned(), "z1".to_owned())]);
        let named = pod("p1", json!({"spec": {"hostname": "db-0", "subdomain": "web"}}));
        let endpoint = named.endpoint(&service(json!({})), "1.2.3.4", &zones);
        assert_eq!((endpoint.hostname.as_deref(), endpoint.zone.as_deref()), (Some("db-0"), Some("z1")));
        assert_eq!(endpoint.target_ref.expect("pod").name, "p1");
    }
}
