//! Services, endpoints and host ports → what each address and port leads to. Pure.

use crate::api::view::meta::Meta;
use crate::api::view::pod::Pod;
use crate::api::view::service::{EndpointSlice, Named, Service, ServicePort, ServiceSpec};
use crate::network::ipam::Cidr;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_SCTP: u8 = 132;
/// Services with this label are another proxy's.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// As upstream has it: three hours.
const STICKY_DEFAULT_S: u32 = 10_800;
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
    /// The same client reaches the same backend until it has been away for so many seconds.
    pub sticky_s: Option<u32>,
    /// Only clients of these networks may use the front; empty = all.
    pub sources: Vec<Cidr>,
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
    /// Whether it is meant for this node, and for this node's zone; `None` = nobody said for whom it is.
    pub for_node: Option<bool>,
    pub for_zone: Option<bool>,
}

/// Where the rules are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    pub node: String,
    /// The node's `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

impl Here {
    pub fn node(name: &str) -> Self {
        Self { node: name.to_owned(), zone: None }
    }
}

/// `None` for slices that carry no IPv4 addresses.
pub fn slice(view: &EndpointSlice, here: &Here) -> Option<Slice> {
    if view.address_type != "IPv4" {
        return None;
    }
    let port = |port: &crate::api::view::service::EndpointPort| {
        Some(SlicePort { name: port.name.clone(), protocol: protocol(&port.protocol)?, port: port.port? })
    };
    let endpoint = |endpoint: &crate::api::view::service::Endpoint| {
        let conditions = &endpoint.conditions;
        let hints = endpoint.hints.as_ref();
        let is_for = |list: &[Named], name: Option<&str>| {
            (!list.is_empty()).then(|| list.iter().any(|named| Some(named.name.as_str()) == name))
        };
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        Some(Endpoint {
            ip: endpoint.addresses.first()?.parse().ok()?,
            ready: conditions.ready.unwrap_or(true),
            last_resort: conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(here.node.as_str()),
            for_node: hints.and_then(|hints| is_for(&hints.for_nodes, Some(&here.node))),
            for_zone: hints.and_then(|hints| is_for(&hints.for_zones, here.zone.as_deref())),
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
        let parsed = |ips: &mut dyn Iterator<Item = &String>| -> Vec<Ipv4Addr> {
            ips.filter_map(|ip| ip.parse().ok()).collect()
        };
        let allowed = sources(service_ranges(spec));
        let none = Vec::new();
        let externals = parsed(&mut spec.external_ips.iter()).into_iter().map(|ip| (ip, self.port.port, &none));
        let balancers = parsed(&mut balancers.into_iter()).into_iter().map(|ip| (ip, self.port.port, &allowed));
        let node_port = (self.port.node_port != 0).then_some((Ipv4Addr::UNSPECIFIED, self.port.node_port, &none));
        let local_only = spec.external_traffic_policy == "Local";
        for (ip, port, allowed) in externals.chain(balancers).chain(node_port) {
            let with_sources = |entry: Entry| Entry { sources: allowed.clone(), ..entry };
            if !local_only {
                fronts.insert(self.front(Reach::Anyone, ip, port), with_sources(self.entry(&self.all, true)));
                continue;
            }
            fronts.insert(self.front(Reach::Anyone, ip, port), with_sources(self.entry(&self.local, false)));
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
        let spec = &self.service.spec;
        let asked = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        let sticky_s = (spec.session_affinity == "ClientIP").then(|| asked.unwrap_or(STICKY_DEFAULT_S));
        Entry { target, sticky_s, sources: Vec::new(), masquerade }
    }
}

fn service_ranges(spec: &ServiceSpec) -> &[String] {
    if spec.r#type == "LoadBalancer" { &spec.load_balancer_source_ranges } else { &[] }
}

/// IPv4 networks, sorted; `0.0.0.0/0` allows everybody. If none can be read, nobody is allowed.
fn sources(ranges: &[String]) -> Vec<Cidr> {
    let ranges: Vec<&str> = ranges.iter().map(|range| range.trim()).collect();
    if ranges.is_empty() || ranges.contains(&"0.0.0.0/0") {
        return Vec::new();
    }
    let mut networks: Vec<Cidr> = ranges.iter().filter_map(|range| range.parse().ok()).collect();
    networks.sort_unstable();
    networks.dedup();
    if networks.is_empty() {
        // No client has it.
        networks.push(Cidr::new(Ipv4Addr::BROADCAST, 32));
    }
    networks
}

/// What is ready; if nothing is, what is terminating and still serves.
fn backends<'a>(
    port_name: &str,
    protocol: u8,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    local_only: bool,
) -> Vec<SocketAddrV4> {
    let near = if local_only { Near::Any } else { nearest(slices.clone()) };
    let pick = |wanted: fn(&Endpoint) -> bool, near: Near| {
        let mut found = Vec::new();
        for slice in slices.clone() {
            let Some(port) = slice.ports.iter().find(|port| port.name == port_name && port.protocol == protocol) else {
                continue;
            };
            let endpoints =
                slice.endpoints.iter().filter(|endpoint| wanted(endpoint) && (endpoint.local || !local_only));
            let endpoints = endpoints.filter(|endpoint| near.takes(endpoint));
            found.extend(endpoints.map(|endpoint| SocketAddrV4::new(endpoint.ip, port.port)));
        }
        found.sort_unstable();
        found.dedup();
        found
    };
    let ready = pick(|endpoint| endpoint.ready, near);
    if ready.is_empty() { pick(|endpoint| endpoint.last_resort, Near::Any) } else { ready }
}

/// Which endpoints a Service's `trafficDistribution` leaves to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    Any,
    Zone,
    Node,
}

impl Near {
    fn takes(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Any => true,
            Self::Zone => endpoint.for_zone == Some(true),
            Self::Node => endpoint.for_node == Some(true),
        }
    }
}

/// Hints count only if every ready endpoint has them and one is for here: else somebody would be left without.
fn nearest<'a>(slices: impl Iterator<Item = &'a Slice> + Clone) -> Near {
    let ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
    let holds = |hint: fn(&Endpoint) -> Option<bool>| {
        let mut hints = ready.clone().map(hint);
        hints.clone().all(|hint| hint.is_some()) && hints.any(|hint| hint == Some(true))
    };
    if holds(|endpoint| endpoint.for_node) {
        Near::Node
    } else if holds(|endpoint| endpoint.for_zone) {
        Near::Zone
    } else {
        Near::Any
    }
}

/// What a load balancer asks a node before it sends traffic of a Service there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub namespace: String,
    pub name: String,
    /// Ready endpoints on this node.
    pub local: usize,
}

/// The port of a Service's health check and its answer, if it has one.
pub fn health<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice>) -> Option<(u16, Health)> {
    let spec = &service.spec;
    let port = spec.health_check_node_port;
    if spec.r#type != "LoadBalancer" || spec.external_traffic_policy != "Local" || port == 0 {
        return None;
    }
    let ready = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready && endpoint.local);
    let local = ready.map(|endpoint| endpoint.ip).collect::<BTreeSet<_>>().len();
    let Meta { namespace, name, .. } = service.metadata.clone();
    Some((port, Health { namespace, name, local }))
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
        fronts.insert(front, Entry { target, sticky_s: None, sources: Vec::new(), masquerade: false });
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
        slice(&serde_json::from_value(view).unwrap(), &Here::node("here")).unwrap()
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
                if entry.sticky_s.is_some() { " sticky" } else { "" },
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
    fn source_ranges_hold_for_the_balancers_addresses_alone() {
        let mut view = service(json!({"type": "LoadBalancer", "clusterIP": "10.43.0.7",
            "externalIPs": ["192.0.2.9"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}));
        view.status.load_balancer.ingress = serde_json::from_value(json!([{"ip": "192.0.2.1"}])).unwrap();
        let slice = endpoints(&[("10.42.0.2", "here", true)]);
        let cases: [(&[&str], &[&str]); 5] = [
            (&[], &[]),
            (&[" 10.0.0.0/8 ", "192.168.1.0/24", "10.0.0.0/8"], &["10.0.0.0/8", "192.168.1.0/24"]),
            (&["10.0.0.0/8", "0.0.0.0/0"], &[]),
            (&["fd00::/8", "10.0.0.0/8"], &["10.0.0.0/8"]),
            (&["fd00::/8"], &["255.255.255.255/32"]),
        ];
        for (ranges, expected) in cases {
            view.spec.load_balancer_source_ranges = ranges.iter().map(|&range| range.to_owned()).collect();
            for (front, entry) in service_fronts(&view, [&slice].into_iter()) {
                let sources: Vec<String> = entry.sources.iter().map(ToString::to_string).collect();
                let expected = if front.ip == Ipv4Addr::new(192, 0, 2, 1) { expected } else { &[] };
                assert_eq!(sources, expected, "{front:?} {ranges:?}");
            }
        }
    }

    #[test]
    fn endpoints_meant_for_here_are_preferred() {
        // Ready endpoints: address, zones, nodes. This node is `here` in zone `a`.
        const ONE: &str = "10.42.0.2";
        const TWO: &str = "10.42.1.3";
        type Case<'a> = (&'a [(&'a str, &'a [&'a str], &'a [&'a str])], Option<&'a str>, &'a str);
        let cases: Vec<Case> = vec![
            (&[(ONE, &["a"], &[]), (TWO, &["b"], &[])], Some("a"), "10.42.0.2:8080"),
            (&[(ONE, &["a"], &["there"]), (TWO, &["a"], &["here"])], Some("a"), "10.42.1.3:8080"),
            // No endpoint on this node: the zone's.
            (&[(ONE, &["a"], &["there"]), (TWO, &["b"], &["other"])], Some("a"), "10.42.0.2:8080"),
            // Nobody in this zone, an endpoint without a hint, a node without a zone: all of them.
            (&[(ONE, &["b"], &[]), (TWO, &["b"], &[])], Some("a"), "10.42.0.2:8080,10.42.1.3:8080"),
            (&[(ONE, &["a"], &[]), (TWO, &[], &[])], Some("a"), "10.42.0.2:8080,10.42.1.3:8080"),
            (&[(ONE, &["a"], &[]), (TWO, &["b"], &[])], None, "10.42.0.2:8080,10.42.1.3:8080"),
        ];
        for (list, zone, expected) in cases {
            let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
            let endpoint = |(ip, zones, nodes): &(&str, &[&str], &[&str])| {
                json!({"addresses": [ip], "conditions": {"ready": true},
                    "hints": {"forZones": named(zones), "forNodes": named(nodes)}})
            };
            let view = json!({"addressType": "IPv4", "endpoints": list.iter().map(endpoint).collect::<Value>(),
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]});
            let here = Here { node: "here".into(), zone: zone.map(str::to_owned) };
            let slice = slice(&serde_json::from_value(view).unwrap(), &here).unwrap();
            let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]});
            let fronts = shown(&service_fronts(&service(spec), [&slice].into_iter()));
            assert_eq!(fronts, [format!("Anyone 10.43.0.7:80 {expected}")], "{list:?} {zone:?}");
        }
    }

    #[test]
    fn health_checks_count_what_is_ready_on_this_node() {
        let spec = |kind: &str, policy: &str| json!({"type": kind, "clusterIP": "10.43.0.7", "externalTrafficPolicy": policy, "healthCheckNodePort": 32000});
        let slices = [
            endpoints(&[("10.42.0.2", "here", true), ("10.42.0.3", "here", false), ("10.42.1.3", "there", true)]),
            endpoints(&[("10.42.0.2", "here", true), ("10.42.0.4", "here", true)]),
        ];
        let health =
            |kind, policy| health(&service(spec(kind, policy)), slices.iter()).map(|(port, one)| (port, one.local));
        assert_eq!(health("LoadBalancer", "Local"), Some((32000, 2)));
        assert_eq!(health("LoadBalancer", "Cluster"), None);
        assert_eq!(health("NodePort", "Local"), None);
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
