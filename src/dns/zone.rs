//! The cluster's names: Services and endpoints as they are, not flattened into records. Pure.
//! A lookup takes the name apart instead, so a change of a Service is one map entry.

use crate::api::view::service::{EndpointSlice, Service};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// What a record says, without the name it is asked under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    Address(IpAddr),
    /// Name without its final dot, as in all of these.
    Alias(String),
    Service {
        port: u16,
        target: String,
    },
    Pointer(String),
    Text(&'static str),
    NameServer(String),
    Start,
}

/// What the zone has under a name: nothing at all, or records, perhaps of other types only.
pub type Found = Option<Vec<Data>>;

/// The version of Kubernetes' DNS specification that is followed.
const SCHEMA_VERSION: &str = "1.1.0";

#[derive(Default)]
struct Entry {
    service: Option<ServiceNames>,
    slices: BTreeMap<String, SliceNames>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ServiceNames {
    cluster_ips: Vec<IpAddr>,
    /// CNAME target of an ExternalName Service.
    external: Option<String>,
    headless: bool,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    /// Lower case.
    protocol: String,
    number: u16,
}

#[derive(Debug, Default)]
struct SliceNames {
    endpoints: Vec<Named>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug)]
struct Named {
    ip: IpAddr,
    /// The pod's `hostname`, else the address with dashes.
    name: String,
    /// Only real hostnames are pointed back to.
    is_hostname: bool,
}

#[derive(Default)]
pub struct Zone {
    /// `cluster.local`.
    domain: String,
    dns: Vec<IpAddr>,
    namespaces: HashSet<String>,
    services: HashMap<String, BTreeMap<String, Entry>>,
    /// Names that addresses point back to, with the number of sources of each.
    pointers: HashMap<IpAddr, BTreeMap<String, usize>>,
    /// Namespace of each pod address on this node.
    pods: HashMap<IpAddr, String>,
    pod_addresses: HashMap<String, Vec<IpAddr>>,
}

impl Zone {
    pub fn new(domain: &str, dns: IpAddr) -> Self {
        Self { domain: domain.to_ascii_lowercase(), dns: vec![dns], ..Self::default() }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// `key` is `namespace/name`, here and below.
    pub fn set_service(&mut self, key: &str, service: Option<&Service>) {
        self.change(key, |entry| entry.service = service.map(service_names));
    }

    pub fn set_slice(&mut self, service: &str, slice_key: &str, slice: Option<&EndpointSlice>) {
        self.change(service, |entry| {
            match slice {
                Some(slice) => entry.slices.insert(slice_key.to_owned(), slice_names(slice)),
                None => entry.slices.remove(slice_key),
            };
        });
    }

    /// Addresses of a pod on this node; none when it is gone.
    pub fn set_pod(&mut self, key: &str, addresses: Vec<IpAddr>) {
        for ip in self.pod_addresses.remove(key).unwrap_or_default() {
            self.pods.remove(&ip);
        }
        let Some((namespace, _)) = key.split_once('/') else { return };
        for ip in &addresses {
            self.pods.insert(*ip, namespace.to_owned());
        }
        if !addresses.is_empty() {
            self.pod_addresses.insert(key.to_owned(), addresses);
        }
    }

    pub fn namespace_of(&self, pod: IpAddr) -> Option<&str> {
        self.pods.get(&pod).map(String::as_str)
    }

    /// What is under a name of this zone. `name` is lower case, without the domain and final dots.
    pub fn lookup(&self, name: &str) -> Found {
        let mut labels: Vec<&str> = name.split('.').filter(|label| !label.is_empty()).collect();
        labels.reverse();
        match labels.as_slice() {
            [] => Some(vec![Data::Start, Data::NameServer(format!("ns.dns.{}", self.domain))]),
            ["dns-version"] => Some(vec![Data::Text(SCHEMA_VERSION)]),
            ["dns", "ns"] => Some(self.dns.iter().copied().map(Data::Address).collect()),
            ["dns" | "svc" | "pod"] => Some(Vec::new()),
            ["svc" | "pod", namespace] => self.has_namespace(namespace).then(Vec::new),
            ["pod", namespace, address] if self.has_namespace(namespace) => {
                dashed(address).map(|ip| vec![Data::Address(ip)])
            }
            ["svc", namespace, service, rest @ ..] => {
                let entry = self.services.get(*namespace)?.get(*service)?;
                entry.lookup(rest, &format!("{service}.{namespace}.svc.{}", self.domain))
            }
            _ => None,
        }
    }

    /// The names an address points back to.
    pub fn reverse(&self, ip: IpAddr) -> Vec<Data> {
        let names = self.pointers.get(&ip).into_iter().flat_map(BTreeMap::keys);
        names.map(|name| Data::Pointer(name.clone())).collect()
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace) || self.services.contains_key(namespace)
    }

    fn change(&mut self, key: &str, change: impl FnOnce(&mut Entry)) {
        let Some((namespace, name)) = key.split_once('/') else { return };
        let suffix = format!("{name}.{namespace}.svc.{}", self.domain);
        let services = self.services.entry(namespace.to_owned()).or_default();
        let entry = services.entry(name.to_owned()).or_default();
        let before = entry.pointers(&suffix);
        change(entry);
        let after = entry.pointers(&suffix);
        if entry.service.is_none() && entry.slices.is_empty() {
            services.remove(name);
        }
        if services.is_empty() {
            self.services.remove(namespace);
        }
        for (ip, name) in after {
            *self.pointers.entry(ip).or_default().entry(name).or_default() += 1;
        }
        for (ip, name) in before {
            self.unpoint(ip, &name);
        }
    }

    fn unpoint(&mut self, ip: IpAddr, name: &str) {
        let Some(names) = self.pointers.get_mut(&ip) else { return };
        if let Some(count) = names.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                names.remove(name);
            }
        }
        if names.is_empty() {
            self.pointers.remove(&ip);
        }
    }
}

impl Entry {
    /// `rest` is what stands before the Service's name, from right to left; `own` the Service's full name.
    fn lookup(&self, rest: &[&str], own: &str) -> Found {
        let service = self.service.as_ref()?;
        if let Some(target) = &service.external {
            return rest.is_empty().then(|| vec![Data::Alias(target.clone())]);
        }
        match rest {
            [] if service.headless => non_empty(self.endpoints().map(|named| Data::Address(named.ip)).collect()),
            [] => Some(service.cluster_ips.iter().copied().map(Data::Address).collect()),
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                non_empty(self.service_records(service, &port[1..], &protocol[1..], own))
            }
            [protocol] if protocol.starts_with('_') => {
                let known = self.ports(service).any(|port| port.protocol == protocol[1..]);
                known.then(Vec::new)
            }
            [host] => {
                let named = self.endpoints().filter(|named| named.name == *host);
                non_empty(named.map(|named| Data::Address(named.ip)).collect())
            }
            _ => None,
        }
    }

    fn service_records(&self, service: &ServiceNames, port: &str, protocol: &str, own: &str) -> Vec<Data> {
        let wanted = |candidate: &&Port| candidate.name == port && candidate.protocol == protocol;
        if !service.headless {
            let ports = service.ports.iter().filter(wanted);
            return ports.map(|port| Data::Service { port: port.number, target: own.to_owned() }).collect();
        }
        let mut records = Vec::new();
        for slice in self.slices.values() {
            for port in slice.ports.iter().filter(wanted) {
                let target = |named: &Named| format!("{}.{own}", named.name);
                let record = |named| Data::Service { port: port.number, target: target(named) };
                records.extend(slice.endpoints.iter().map(record));
            }
        }
        distinct(records)
    }

    fn ports<'a>(&'a self, service: &'a ServiceNames) -> impl Iterator<Item = &'a Port> {
        service.ports.iter().chain(self.slices.values().flat_map(|slice| &slice.ports))
    }

    fn endpoints(&self) -> impl Iterator<Item = &Named> {
        self.slices.values().flat_map(|slice| &slice.endpoints)
    }

    fn pointers(&self, own: &str) -> BTreeSet<(IpAddr, String)> {
        let Some(service) = &self.service else { return BTreeSet::new() };
        let hosts = self.endpoints().filter(|named| named.is_hostname);
        let hosts = hosts.map(|named| (named.ip, format!("{}.{own}", named.name)));
        service.cluster_ips.iter().map(|ip| (*ip, own.to_owned())).chain(hosts).collect()
    }
}

/// CoreDNS denies names that have no endpoint, and so do we: resolvers go on to the next search domain.
fn non_empty(data: Vec<Data>) -> Found {
    (!data.is_empty()).then(|| distinct(data))
}

fn distinct(mut data: Vec<Data>) -> Vec<Data> {
    data.sort();
    data.dedup();
    data
}

fn service_names(service: &Service) -> ServiceNames {
    let spec = &service.spec;
    let external = (spec.r#type == "ExternalName").then(|| spec.external_name.trim_end_matches('.').to_owned());
    let listed =
        if spec.cluster_ips.is_empty() { std::slice::from_ref(&spec.cluster_ip) } else { &spec.cluster_ips[..] };
    let port = |port: &crate::api::view::service::ServicePort| Port {
        name: port.name.clone(),
        protocol: lower_protocol(&port.protocol),
        number: port.port,
    };
    ServiceNames {
        cluster_ips: listed.iter().filter_map(|ip| ip.parse().ok()).collect(),
        headless: external.is_none() && service.is_headless(),
        external,
        ports: spec.ports.iter().map(port).collect(),
    }
}

fn slice_names(slice: &EndpointSlice) -> SliceNames {
    let named = |endpoint: &crate::api::view::service::Endpoint| {
        if !endpoint.conditions.ready.unwrap_or(true) {
            return None;
        }
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        let name = hostname.map_or_else(|| ip.to_string().replace(['.', ':'], "-"), str::to_ascii_lowercase);
        Some(Named { ip, name, is_hostname: hostname.is_some() })
    };
    let port = |port: &crate::api::view::service::EndpointPort| {
        Some(Port { name: port.name.clone(), protocol: lower_protocol(&port.protocol), number: port.port? })
    };
    SliceNames {
        endpoints: slice.endpoints.iter().filter_map(named).collect(),
        ports: slice.ports.iter().filter_map(port).collect(),
    }
}

fn lower_protocol(protocol: &str) -> String {
    if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() }
}

/// `10-42-0-7` or `2001-db8--7`.
fn dashed(label: &str) -> Option<IpAddr> {
    label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One Service of each kind.
    pub fn example() -> Zone {
        let mut zone = Zone::new("cluster.local", ip("10.43.0.10"));
        zone.set_namespace("default", true);
        let service = |spec: Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let slice = |endpoints: Value| -> EndpointSlice {
            serde_json::from_value(json!({"endpoints": endpoints,
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]}))
            .unwrap()
        };
        let port = json!([{"name": "http", "protocol": "TCP", "port": 80}]);
        zone.set_service("default/web", Some(&service(json!({"clusterIP": "10.43.0.7", "ports": port}))));
        zone.set_service("default/db", Some(&service(json!({"clusterIP": "None", "ports": port}))));
        zone.set_slice(
            "default/db",
            "default/db-1",
            Some(&slice(json!([
            {"addresses": ["10.42.0.2"], "hostname": "db-0"}, {"addresses": ["10.42.0.3"]},
            {"addresses": ["10.42.0.4"], "conditions": {"ready": false}}]))),
        );
        zone.set_service("default/empty", Some(&service(json!({"clusterIP": "None", "ports": port}))));
        zone.set_service(
            "other/ext",
            Some(&service(json!({"type": "ExternalName", "externalName": "www.example.com."}))),
        );
        zone.set_pod("default/client", vec![ip("10.42.0.50")]);
        zone
    }

    #[test]
    fn names_lead_to_what_the_specification_says() {
        let zone = example();
        let address = |text: &str| Data::Address(ip(text));
        let target = |port, target: &str| Data::Service { port, target: format!("{target}.default.svc.cluster.local") };
        let cases: Vec<(&str, Found)> = vec![
            ("web.default.svc", Some(vec![address("10.43.0.7")])),
            ("_http._tcp.web.default.svc", Some(vec![target(80, "web")])),
            ("_http._udp.web.default.svc", None),
            ("_tcp.web.default.svc", Some(vec![])),
            ("db.default.svc", Some(vec![address("10.42.0.2"), address("10.42.0.3")])),
            ("db-0.db.default.svc", Some(vec![address("10.42.0.2")])),
            ("10-42-0-3.db.default.svc", Some(vec![address("10.42.0.3")])),
            ("10-42-0-4.db.default.svc", None),
            ("_http._tcp.db.default.svc", Some(vec![target(8080, "10-42-0-3.db"), target(8080, "db-0.db")])),
            ("empty.default.svc", None),
            ("ext.other.svc", Some(vec![Data::Alias("www.example.com".into())])),
            ("x.ext.other.svc", None),
            ("10-42-0-9.default.pod", Some(vec![address("10.42.0.9")])),
            ("10-42-0-9.nowhere.pod", None),
            ("nonsense.default.pod", None),
            ("default.svc", Some(vec![])),
            ("default.pod", Some(vec![])),
            ("nowhere.svc", None),
            ("svc", Some(vec![])),
            ("web.nowhere.svc", None),
            ("a.b.c.web.default.svc", None),
            ("dns-version", Some(vec![Data::Text("1.1.0")])),
            ("ns.dns", Some(vec![address("10.43.0.10")])),
            ("", Some(vec![Data::Start, Data::NameServer("ns.dns.cluster.local".into())])),
            ("nothing", None),
        ];
        for (name, expected) in cases {
            assert_eq!(zone.lookup(name), expected, "{name}");
        }
    }

    #[test]
    fn addresses_point_back_to_services_and_hostnames() {
        let zone = example();
        let pointer = |name: &str| vec![Data::Pointer(format!("{name}.default.svc.cluster.local"))];
        assert_eq!(zone.reverse(ip("10.43.0.7")), pointer("web"));
        assert_eq!(zone.reverse(ip("10.42.0.2")), pointer("db-0.db"));
        assert_eq!(zone.reverse(ip("10.42.0.3")), [], "no hostname");
    }

    #[test]
    fn what_is_taken_away_leaves_nothing() {
        let mut zone = example();
        for key in ["default/web", "default/db", "default/empty", "other/ext"] {
            zone.set_service(key, None);
        }
        assert_eq!(zone.lookup("db.default.svc"), None, "endpoints alone are no name");
        zone.set_slice("default/db", "default/db-1", None);
        zone.set_pod("default/client", Vec::new());
        assert!(zone.services.is_empty() && zone.pointers.is_empty() && zone.pods.is_empty());
        zone.set_namespace("default", false);
        assert_eq!(zone.lookup("default.svc"), None);
    }
}
