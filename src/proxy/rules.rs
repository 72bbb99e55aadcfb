//! Services, endpoints and host ports → what each address and port leads to. Pure.

use crate::api::view::pod::Pod;
use crate::api::view::service::{EndpointSlice, Service, ServicePort};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_SCTP: u8 = 132;
/// Services with this label are another proxy's.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Where a connection comes from, as far as it matters to a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    Anyone = 0,
    /// Pods and the node itself; tried before `Anyone`.
    Inside = 1,
}

/// What a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    pub reach: Reach,
    /// Unspecified: any of the node's own addresses.
    pub ip: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
}

impl Front {
    pub fn is_udp(&self) -> bool {
        self.protocol == PROTOCOL_UDP
    }
}

/// Where a front leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Sorted, without duplicates, not empty.
    Backends(Vec<SocketAddrV4>),
    /// No endpoint at all: connections fail at once.
    Refuse,
    /// Endpoints on other nodes only, which this front may not use: a load balancer tries another node.
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub target: Target,
    /// The same client reaches the same backend.
    pub sticky: bool,
    /// Clients from outside the cluster are hidden behind the node, so that answers come back through it.
    pub masquerade: bool,
}

pub type Fronts = BTreeMap<Front, Entry>;

/// An endpoint slice as far as rules need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: Ipv4Addr,
    pub ready: bool,
    /// Terminating, yet still answering: used when nothing is ready.
    pub last_resort: bool,
    pub local: bool,
    pub pod_uid: String,
}

/// `None` for slices that carry no IPv4 addresses.
pub fn slice(view: &EndpointSlice, node: &str) -> Option<Slice> {
    if view.address_type != "IPv4" {
        return None;
    }
    let port = |port: &crate::api::view::service::EndpointPort| {
        Some(SlicePort { name: port.name.clone(), protocol: protocol(&port.protocol)?, port: port.port? })
    };
    let endpoint = |endpoint: &crate::api::view::service::Endpoint| {
        let conditions = &endpoint.conditions;
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        Some(Endpoint {
            ip: endpoint.addresses.first()?.parse().ok()?,
            ready: conditions.ready.unwrap_or(true),
            last_resort: conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node),
            pod_uid: target.map(|target| target.uid.clone()).unwrap_or_default(),
        })
    };
    Some(Slice {
        ports: view.ports.iter().filter_map(port).collect(),
        endpoints: view.endpoints.iter().filter_map(endpoint).collect(),
    })
}

/// Everything a Service can be reached by. Headless and external names have nothing here: DNS answers them.
pub fn service_fronts<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice> + Clone) -> Fronts {
    let mut fronts = Fronts::new();
    let Ok(cluster_ip) = service.spec.cluster_ip.parse::<Ipv4Addr>() else { return fronts };
    if service.spec.r#type == "ExternalName" || service.metadata.labels.contains_key(OTHER_PROXY_LABEL) {
        return fronts;
    }
    for port in &service.spec.ports {
        let Some(protocol) = protocol(&port.protocol) else { continue };
        let all = backends(&port.name, protocol, slices.clone(), false);
        let local = backends(&port.name, protocol, slices.clone(), true);
        let ports = PortFronts { service, port, protocol, all, local };
        ports.cluster(cluster_ip, &mut fronts);
        ports.external(&mut fronts);
    }
    fronts
}

struct PortFronts<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    protocol: u8,
    all: Vec<SocketAddrV4>,
    local: Vec<SocketAddrV4>,
}

impl PortFronts<'_> {
    fn cluster(&self, ip: Ipv4Addr, fronts: &mut Fronts) {
        let local_only = self.service.spec.internal_traffic_policy == "Local";
        let entry = self.entry(if local_only { &self.local } else { &self.all }, false);
        fronts.insert(self.front(Reach::Anyone, ip, self.port.port), entry);
    }

    /// Node ports, external addresses and those of load balancers.
    fn external(&self, fronts: &mut Fronts) {
        let spec = &self.service.spec;
        let balancers = self.service.status.load_balancer.ingress.iter();
        let balancers = balancers.filter(|ingress| ingress.ip_mode != "Proxy").map(|ingress| &ingress.ip);
        let ips = spec.external_ips.iter().chain(balancers).filter_map(|ip| ip.parse().ok());
        let mut places: Vec<(Ipv4Addr, u16)> = ips.map(|ip| (ip, self.port.port)).collect();
        if self.port.node_port != 0 {
            places.push((Ipv4Addr::UNSPECIFIED, self.port.node_port));
        }
        let local_only = spec.external_traffic_policy == "Local";
        for (ip, port) in places {
            if !local_only {
                fronts.insert(self.front(Reach::Anyone, ip, port), self.entry(&self.all, true));
                continue;
            }
            fronts.insert(self.front(Reach::Anyone, ip, port), self.entry(&self.local, false));
            if !self.all.is_empty() {
                // Pods and the node may use every endpoint: the client's address is theirs anyway.
                fronts.insert(self.front(Reach::Inside, ip, port), self.entry(&self.all, false));
            }
        }
    }

    fn front(&self, reach: Reach, ip: Ipv4Addr, port: u16) -> Front {
        Front { reach, ip, protocol: self.protocol, port }
    }

    fn entry(&self, backends: &[SocketAddrV4], masquerade: bool) -> Entry {
        let target = match (backends.is_empty(), self.all.is_empty()) {
            (false, _) => Target::Backends(backends.to_vec()),
            (true, true) => Target::Refuse,
            (true, false) => Target::Drop,
        };
        Entry { target, sticky: self.service.spec.session_affinity == "ClientIP", masquerade }
    }
}

/// What is ready; if nothing is, what is terminating and still serves.
fn backends<'a>(
    port_name: &str,
    protocol: u8,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    local_only: bool,
) -> Vec<SocketAddrV4> {
    let pick = |wanted: fn(&Endpoint) -> bool| {
        let mut found = Vec::new();
        for slice in slices.clone() {
            let Some(port) = slice.ports.iter().find(|port| port.name == port_name && port.protocol == protocol) else {
                continue;
            };
            let endpoints =
                slice.endpoints.iter().filter(|endpoint| wanted(endpoint) && (endpoint.local || !local_only));
            found.extend(endpoints.map(|endpoint| SocketAddrV4::new(endpoint.ip, port.port)));
        }
        found.sort_unstable();
        found.dedup();
        found
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() { pick(|endpoint| endpoint.last_resort) } else { ready }
}

/// Ports of the node that lead to a pod on it.
pub fn host_port_fronts(pod: &Pod) -> Fronts {
    let mut fronts = Fronts::new();
    let Ok(pod_ip) = pod.status.pod_ip.parse::<Ipv4Addr>() else { return fronts };
    if pod.spec.host_network || pod.has_ended() {
        return fronts;
    }
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    for port in containers.flat_map(|container| &container.ports) {
        let (Some(host_port), Some(protocol)) = (port.host_port.filter(|port| *port != 0), protocol(&port.protocol))
        else {
            continue;
        };
        let ip = if port.host_ip.is_empty() { Ok(Ipv4Addr::UNSPECIFIED) } else { port.host_ip.parse() };
        let Ok(ip) = ip else { continue };
        let front = Front { reach: Reach::Anyone, ip, protocol, port: host_port };
        let target = Target::Backends(vec![SocketAddrV4::new(pod_ip, port.container_port)]);
        fronts.insert(front, Entry { target, sticky: false, masquerade: false });
    }
    fronts
}

fn protocol(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(PROTOCOL_TCP),
        "UDP" => Some(PROTOCOL_UDP),
        "SCTP" => Some(PROTOCOL_SCTP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})).unwrap()
    }

    /// Endpoints `ip`, `node`, `ready`; the slice's one port is `http` 8080.
    fn endpoints(list: &[(&str, &str, bool)]) -> Slice {
        let endpoints: Vec<Value> = list
            .iter()
            .map(|(ip, node, ready)| {
                json!({"addresses": [ip], "nodeName": node, "targetRef": {"kind": "Pod", "uid": format!("uid-{ip}")},
                    "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
            })
            .collect();
        let view = json!({"addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]});
        slice(&serde_json::from_value(view).unwrap(), "here").unwrap()
    }

    fn shown(fronts: &Fronts) -> Vec<String> {
        let target = |entry: &Entry| match &entry.target {
            Target::Backends(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Target::Refuse => "refuse".to_owned(),
            Target::Drop => "drop".to_owned(),
        };
        let flags = |entry: &Entry| {
            format!(
                "{}{}",
                if entry.sticky { " sticky" } else { "" },
                if entry.masquerade { " masquerade" } else { "" }
            )
        };
        let line = |(front, entry): (&Front, &Entry)| {
            format!("{:?} {}:{} {}{}", front.reach, front.ip, front.port, target(entry), flags(entry))
        };
        fronts.iter().map(line).collect()
    }

    #[test]
    fn services_lead_where_kubernetes_says() {
        let ready = [("10.42.0.2", "here", true), ("10.42.1.3", "there", true)];
        let port = json!([{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]);
        let plain = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
        type Case<'a> = (&'a str, Value, Vec<(&'a str, &'a str, bool)>, Vec<&'a str>);
        let cases: Vec<Case> = vec![
            (
                "cluster address",
                json!({"clusterIP": "10.43.0.7", "ports": plain}),
                ready.to_vec(),
                vec!["Anyone 10.43.0.7:80 10.42.0.2:8080,10.42.1.3:8080"],
            ),
            (
                "not ready is not used",
                json!({"clusterIP": "10.43.0.7", "ports": plain}),
                vec![("10.42.0.2", "here", true), ("10.42.1.3", "there", false)],
                vec!["Anyone 10.43.0.7:80 10.42.0.2:8080"],
            ),
            (
                "terminating is the last resort",
                json!({"clusterIP": "10.43.0.7", "ports": plain}),
                vec![("10.42.1.3", "there", false)],
                vec!["Anyone 10.43.0.7:80 10.42.1.3:8080"],
            ),
            ("nothing", json!({"clusterIP": "10.43.0.7", "ports": plain}), vec![], vec!["Anyone 10.43.0.7:80 refuse"]),
            ("headless", json!({"clusterIP": "None", "ports": plain}), ready.to_vec(), vec![]),
            ("external name", json!({"type": "ExternalName", "externalName": "example.com"}), ready.to_vec(), vec![]),
            (
                "node port",
                json!({"type": "NodePort", "clusterIP": "10.43.0.7", "ports": port}),
                ready.to_vec(),
                vec![
                    "Anyone 0.0.0.0:30080 10.42.0.2:8080,10.42.1.3:8080 masquerade",
                    "Anyone 10.43.0.7:80 10.42.0.2:8080,10.42.1.3:8080",
                ],
            ),
            (
                "external traffic stays local, the cluster's own does not",
                json!({"type": "NodePort", "clusterIP": "10.43.0.7", "ports": port, "externalTrafficPolicy": "Local"}),
                ready.to_vec(),
                vec![
                    "Anyone 0.0.0.0:30080 10.42.0.2:8080",
                    "Anyone 10.43.0.7:80 10.42.0.2:8080,10.42.1.3:8080",
                    "Inside 0.0.0.0:30080 10.42.0.2:8080,10.42.1.3:8080",
                ],
            ),
            (
                "external traffic without a local endpoint is dropped",
                json!({"clusterIP": "10.43.0.7", "ports": plain, "externalIPs": ["192.168.1.9"], "externalTrafficPolicy": "Local"}),
                vec![("10.42.1.3", "there", true)],
                vec![
                    "Anyone 10.43.0.7:80 10.42.1.3:8080",
                    "Anyone 192.168.1.9:80 drop",
                    "Inside 192.168.1.9:80 10.42.1.3:8080",
                ],
            ),
            (
                "internal traffic policy",
                json!({"clusterIP": "10.43.0.7", "ports": plain, "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
                ready.to_vec(),
                vec!["Anyone 10.43.0.7:80 10.42.0.2:8080 sticky"],
            ),
        ];
        for (name, spec, list, expected) in cases {
            let slice = endpoints(&list);
            assert_eq!(shown(&service_fronts(&service(spec), [&slice].into_iter())), expected, "{name}");
        }
    }

    #[test]
    fn load_balancer_addresses_are_fronts_and_other_proxies_services_are_not() {
        let mut view = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        view.status.load_balancer.ingress = serde_json::from_value(
            json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"hostname": "x"}]),
        )
        .unwrap();
        let slice = endpoints(&[("10.42.0.2", "here", true)]);
        let fronts = shown(&service_fronts(&view, [&slice].into_iter()));
        assert_eq!(fronts, ["Anyone 10.43.0.7:80 10.42.0.2:8080", "Anyone 192.0.2.1:80 10.42.0.2:8080 masquerade"]);
        view.metadata.labels.insert(OTHER_PROXY_LABEL.to_owned(), "other".to_owned());
        assert!(service_fronts(&view, [&slice].into_iter()).is_empty());
    }

    #[test]
    fn ports_match_by_name_and_protocol() {
        let slice = endpoints(&[("10.42.0.2", "here", true)]);
        for (name, protocol, found) in [("http", "TCP", true), ("http", "UDP", false), ("other", "TCP", false)] {
            let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"name": name, "protocol": protocol, "port": 80}]});
            let fronts = service_fronts(&service(spec), [&slice].into_iter());
            let entry = fronts.values().next().unwrap();
            assert_eq!(matches!(entry.target, Target::Backends(_)), found, "{name} {protocol}");
        }
    }

    #[test]
    fn host_ports_lead_to_pods_that_have_an_address_and_run() {
        let pod = |host_network: bool, phase: &str, ip: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"hostNetwork": host_network, "containers": [{"ports": [
                {"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"containerPort": 9090}]}]}, "status": {"phase": phase, "podIP": ip}}))
            .unwrap()
        };
        let fronts = shown(&host_port_fronts(&pod(false, "Running", "10.42.0.9")));
        assert_eq!(fronts, ["Anyone 0.0.0.0:8080 10.42.0.9:80", "Anyone 192.0.2.1:53 10.42.0.9:53"]);
        for (host_network, phase, ip) in
            [(true, "Running", "10.0.0.1"), (false, "Failed", "10.42.0.9"), (false, "Pending", "")]
        {
            assert!(host_port_fronts(&pod(host_network, phase, ip)).is_empty());
        }
    }
}
