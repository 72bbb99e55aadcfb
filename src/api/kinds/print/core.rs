//! Printers of the core group but pods, workloads and volumes.

use super::{
    NONE, Printer, UNKNOWN, age, condition, first_three, flag, joined_or, labels, list, number, or, quantity, since,
    texts,
};
use crate::api::kinds::Convert;
use crate::api::kinds::row::{AGE, NAME, columns, string, wide};
use crate::api::object::{Object, ObjectExt};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;

pub(in crate::api::kinds) const COMPONENT_STATUS: Printer = Printer::new(
    columns![
        NAME,
        string("Status", "Whether the component says it is healthy."),
        string("Message", "What the component says."),
        string("Error", "Why the component could not be asked."),
    ],
    |object, _| {
        let healthy = list(object, &["conditions"]).iter().find(|one| one.str_at(&["type"]) == "Healthy");
        let text = |field| healthy.map_or("", |one| one.str_at(&[field]));
        let status = if text("status") == "True" { "Healthy" } else { "Unhealthy" };
        cells![object.name(), status, text("message"), text("error")]
    },
);

pub(in crate::api::kinds) const CONFIG_MAP: Printer =
    Printer::new(columns![NAME, string("Data", "Number of keys, text and binary."), AGE], |object, now| {
        cells![object.name(), size(object, "data") + size(object, "binaryData"), age(object, now)]
    });

pub(in crate::api::kinds) const SECRET: Printer = Printer::new(
    columns![NAME, string("Type", "What the data is for."), string("Data", "Number of keys."), AGE],
    |object, now| cells![object.name(), object.str_at(&["type"]), size(object, "data"), age(object, now)],
);

pub(in crate::api::kinds) const NAME_AND_AGE: Printer =
    Printer::new(columns![NAME, AGE], |object, now| cells![object.name(), age(object, now)]);

pub(in crate::api::kinds) const NAMESPACE: Printer =
    Printer::new(columns![NAME, string("Status", "Active or Terminating."), AGE], |object, now| {
        cells![object.name(), object.str_at(&["status", "phase"]), age(object, now)]
    });

pub(in crate::api::kinds) const NODE: Printer = Printer::new(
    columns![
        NAME,
        string("Status", "Whether the node is ready and takes new pods."),
        string("Roles", "Roles of the node, from its labels."),
        AGE,
        string("Version", "Version the node runs."),
        wide("Internal-IP", "Address of the node inside the cluster."),
        wide("External-IP", "Address of the node outside the cluster."),
        wide("OS-Image", "Operating system of the node."),
        wide("Kernel-Version", "Kernel of the node."),
        wide("Container-Runtime", "Container runtime of the node and its version."),
    ],
    |node, now| {
        let info = |field| or(node, &["status", "nodeInfo", field], UNKNOWN);
        cells![
            node.name(),
            node_status(node),
            node_roles(node),
            age(node, now),
            node.str_at(&["status", "nodeInfo", "kubeletVersion"]),
            node_address(node, "InternalIP"),
            node_address(node, "ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    },
);

fn node_status(node: &Object) -> String {
    let ready = match condition(node, "Ready") {
        "" => "Unknown",
        "True" => "Ready",
        _ => "NotReady",
    };
    let cordoned = if flag(node, &["spec", "unschedulable"]) { ",SchedulingDisabled" } else { "" };
    format!("{ready}{cordoned}")
}

fn node_roles(node: &Object) -> String {
    let labels = node.at(&["metadata", "labels"]).and_then(Value::as_object);
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let roles: BTreeSet<String> =
        labels.into_iter().flatten().filter_map(role).filter(|role| !role.is_empty()).collect();
    if roles.is_empty() { NONE.to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn node_address<'a>(node: &'a Object, r#type: &str) -> &'a str {
    let addresses = list(node, &["status", "addresses"]);
    addresses.iter().find(|one| one.str_at(&["type"]) == r#type).map_or(NONE, |one| one.str_at(&["address"]))
}

pub(in crate::api::kinds) const SERVICE: Printer = Printer::new(
    columns![
        NAME,
        string("Type", "How the service is reached."),
        string("Cluster-IP", "Address of the service inside the cluster."),
        string("External-IP", "Addresses of the service outside the cluster."),
        string("Port(s)", "Ports of the service, and of the nodes for them."),
        AGE,
        wide("Selector", "Labels of the pods that serve."),
    ],
    |service, now| {
        let cluster_ips = texts(service, &["spec", "clusterIPs"]);
        cells![
            service.name(),
            service.str_at(&["spec", "type"]),
            *cluster_ips.first().unwrap_or(&NONE),
            external_ips(service),
            service_ports(service),
            age(service, now),
            labels(service.at(&["spec", "selector"])),
        ]
    },
);

fn external_ips(service: &Object) -> String {
    let external = texts(service, &["spec", "externalIPs"]);
    match service.str_at(&["spec", "type"]) {
        "ClusterIP" | "NodePort" => joined_or(&external, ",", NONE),
        "LoadBalancer" => {
            let mut addresses = load_balancer(service);
            addresses.extend(external);
            joined_or(&addresses, ",", "<pending>")
        }
        "ExternalName" => service.str_at(&["spec", "externalName"]).to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

/// The addresses of `status.loadBalancer`, each once, sorted.
pub(super) fn load_balancer(object: &Object) -> Vec<&str> {
    let ingress = list(object, &["status", "loadBalancer", "ingress"]);
    let addresses: BTreeSet<&str> =
        ingress.iter().map(|one| or(one, &["ip"], one.str_at(&["hostname"]))).filter(|one| !one.is_empty()).collect();
    addresses.into_iter().collect()
}

fn service_ports(service: &Object) -> String {
    let port = |port: &Value| {
        let (number, protocol) = (number(port, &["port"]), port.str_at(&["protocol"]));
        match port.int_at(&["nodePort"]).unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    };
    let ports: Vec<String> = list(service, &["spec", "ports"]).iter().map(port).collect();
    if ports.is_empty() { NONE.to_owned() } else { ports.join(",") }
}

pub(in crate::api::kinds) const ENDPOINTS: Printer =
    Printer::new(columns![NAME, string("Endpoints", "Addresses and ports that are ready."), AGE], |object, now| {
        cells![object.name(), endpoints(object), age(object, now)]
    });

fn endpoints(object: &Object) -> String {
    let mut pairs = Vec::new();
    for subset in list(object, &["subsets"]) {
        let addresses = || list(subset, &["addresses"]).iter().map(|one| one.str_at(&["ip"]));
        let ports = list(subset, &["ports"]);
        if ports.is_empty() {
            pairs.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = number(port, &["port"]);
            let pair = |ip: &str| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            pairs.extend(addresses().map(pair));
        }
    }
    if list(object, &["subsets"]).is_empty() { NONE.to_owned() } else { first_three(&pairs, "") }
}

pub(in crate::api::kinds) const EVENT: Printer = Printer::new(
    columns![
        string("Last Seen", "Time since it happened last."),
        string("Type", "Normal or Warning."),
        string("Reason", "Why it happened, in one word."),
        string("Object", "What it happened to."),
        wide("Subobject", "Part of the object."),
        wide("Source", "Component that saw it."),
        string("Message", "What happened."),
        wide("First Seen", "Time since it happened first."),
        wide("Count", "How often it happened."),
        wide("Name", "Name of the event."),
    ],
    event,
);

/// events.k8s.io/v1: the same under other names.
pub(in crate::api::kinds) const EVENT_NEWER: Printer = Printer::new(EVENT.columns, |object, now| {
    let mut object = object.clone();
    crate::api::kinds::events::Conversion.to_storage(&mut object);
    event(&object, now)
});

fn event(event: &Object, now: Timestamp) -> Vec<Value> {
    let time = |path: &[&str]| event.str_at(path).to_owned();
    let first = match time(&["firstTimestamp"]) {
        none if none.is_empty() => time(&["eventTime"]),
        first => first,
    };
    let (last, count) = match event.get("series").filter(|series| !series.is_null()) {
        Some(series) => (time(&["series", "lastObservedTime"]), number(series, &["count"])),
        None => {
            let last = time(&["lastTimestamp"]);
            (if last.is_empty() { first.clone() } else { last }, number(event, &["count"]).max(1))
        }
    };
    let kind = event.str_at(&["involvedObject", "kind"]).to_lowercase();
    let target = match event.str_at(&["involvedObject", "name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(event, &["source", "component"], event.str_at(&["reportingComponent"]));
    let source = match or(event, &["source", "host"], event.str_at(&["reportingInstance"])) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    cells![
        since(&last, now),
        event.str_at(&["type"]),
        event.str_at(&["reason"]),
        target,
        event.str_at(&["involvedObject", "fieldPath"]),
        source,
        event.str_at(&["message"]).trim(),
        since(&first, now),
        count,
        event.name(),
    ]
}

pub(in crate::api::kinds) const RESOURCE_QUOTA: Printer = Printer::new(
    columns![
        NAME,
        string("Request", "Used and allowed, of everything but limits."),
        string("Limit", "Used and allowed limits."),
        AGE,
    ],
    |quota, now| {
        let hard = quota.at(&["status", "hard"]).and_then(Value::as_object);
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, amount) in hard.into_iter().flatten() {
            let used = quantity(quota.at(&["status", "used", resource]));
            let column = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
            column.push(format!("{resource}: {used}/{}", quantity(Some(amount))));
        }
        cells![quota.name(), requests.join(", "), limits.join(", "), age(quota, now)]
    },
);

/// The number of keys of a map.
fn size(object: &Object, field: &str) -> usize {
    object.get(field).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}
