//! Addresses and node ports of Services: given out under one lock, from what the stored Services leave free.
//! There is no table of its own that could disagree with the Services.

use super::{Registry, kind_subject, store_error};
use crate::api::kinds::{Kind, needs_health_check};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use tokio::sync::MutexGuard;

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Random addresses tried before the whole range is walked.
const RANDOM_ATTEMPTS: usize = 16;

/// A service range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    network: u32,
    prefix: u8,
}

impl Range {
    pub fn new((network, prefix): (Ipv4Addr, u8)) -> Self {
        let prefix = prefix.min(30);
        Self { network: u32::from(network) & (u32::MAX << (32 - prefix)), prefix }
    }

    /// Addresses between the network's own and the broadcast one.
    fn size(self) -> u32 {
        (1 << (32 - self.prefix)) - 2
    }

    fn at(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1 + index)
    }

    /// The address of the Service `default/kubernetes`.
    pub fn first(self) -> Ipv4Addr {
        self.at(0)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.network + 1).is_some_and(|index| index < self.size())
    }

    /// The lower part is left for addresses that are asked for by value, as upstream leaves it.
    fn reserved(self) -> u32 {
        (self.size() / 16).clamp(16.min(self.size() / 2), 256)
    }

    fn free(self, used: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let reserved = self.reserved();
        let random = (0..RANDOM_ATTEMPTS).map(|_| fastrand::u32(reserved..self.size()));
        let all = (reserved..self.size()).chain(0..reserved);
        random.chain(all).map(|index| self.at(index)).find(|address| !used.contains(address))
    }
}

/// What the other Services hold.
#[derive(Default)]
struct Used {
    addresses: HashSet<Ipv4Addr>,
    /// Port and protocol.
    node_ports: HashSet<(u16, String)>,
}

/// As much of a Service as holds something.
#[derive(Default, Deserialize)]
struct Holder<'a> {
    #[serde(borrow, default)]
    spec: HolderSpec<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HolderSpec<'a> {
    #[serde(borrow, rename = "clusterIP")]
    cluster_ip: &'a str,
    #[serde(borrow, rename = "clusterIPs")]
    cluster_ips: Vec<&'a str>,
    ports: Vec<HolderPort>,
    health_check_node_port: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HolderPort {
    node_port: u16,
    protocol: String,
}

impl Used {
    fn add(&mut self, Holder { spec }: Holder) {
        let texts = spec.cluster_ips.into_iter().chain([spec.cluster_ip]);
        self.addresses.extend(texts.filter_map(|text| text.parse::<Ipv4Addr>().ok()));
        let ports = spec.ports.into_iter().map(|port| (port.node_port, port.protocol));
        let health_check = u16::try_from(spec.health_check_node_port).unwrap_or(0);
        let all = ports.chain([(health_check, "TCP".to_owned())]);
        self.node_ports.extend(all.filter(|(number, _)| *number != 0));
    }
}

impl Registry {
    pub(super) fn service_range(&self) -> Range {
        Range::new(self.config.service_cidr)
    }

    /// For Services: gives addresses and ports. Hold what it returns until the Service is stored.
    pub(super) async fn assign_addresses(
        &self,
        kind: &Kind,
        service: &mut Object,
        old: Option<&Object>,
    ) -> Result<Option<MutexGuard<'_, ()>>> {
        if kind.storage_prefix != "services" {
            return Ok(None);
        }
        let guard = self.services.lock().await;
        let mut used = Used { addresses: HashSet::from([self.config.cluster_dns]), ..Used::default() };
        let own = kind.key(service.namespace(), service.name());
        let page = self.store.list("services/", "", 0, None).await;
        for entry in page.map_err(|error| store_error(kind, service.name(), error))?.entries {
            if *entry.key != *own {
                used.add(serde_json::from_slice(&entry.bytes).map_err(Status::internal)?);
            }
        }
        let problem = assign(self.service_range(), &used, service, old);
        problem.map_err(|error| Status::invalid(kind_subject(kind, service.name()), vec![error]))?;
        Ok(Some(guard))
    }
}

fn assign(range: Range, used: &Used, service: &mut Object, old: Option<&Object>) -> Result<(), FieldError> {
    if service.str_at(&["spec", "type"]) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            service.unset(&["spec", field]);
        }
    } else {
        assign_address(range, used, service, old)?;
    }
    assign_ports(used, service, old)
}

fn assign_address(range: Range, used: &Used, service: &mut Object, old: Option<&Object>) -> Result<(), FieldError> {
    let before = old.map_or("", |old| old.str_at(&["spec", "clusterIP"]));
    let listed = service.at(&["spec", "clusterIPs"]).and_then(|list| list.get(0)).and_then(Value::as_str);
    let asked = match (service.str_at(&["spec", "clusterIP"]), listed) {
        ("", Some(listed)) => listed,
        ("", None) => before,
        (single, _) => single,
    };
    let given = match asked {
        "" => {
            let free = range.free(&used.addresses);
            free.ok_or_else(|| failed("", "failed to allocate a serviceIP: range is full"))?.to_string()
        }
        "None" => "None".to_owned(),
        same if same == before => same.to_owned(),
        other => check_address(range, used, other)?,
    };
    service.set(&["spec", "clusterIP"], Value::from(given.as_str()));
    service.set(&["spec", "clusterIPs"], json!([given]));
    if service.at(&["spec", "ipFamilies"]).is_none() {
        service.set(&["spec", "ipFamilies"], json!(["IPv4"]));
    }
    if service.at(&["spec", "ipFamilyPolicy"]).is_none() {
        service.set(&["spec", "ipFamilyPolicy"], Value::from("SingleStack"));
    }
    Ok(())
}

fn check_address(range: Range, used: &Used, asked: &str) -> Result<String, FieldError> {
    let address: Ipv4Addr =
        asked.parse().map_err(|_| failed(asked, &format!("failed to allocate IP {asked}: not a valid IP address")))?;
    if !range.contains(address) {
        let (first, prefix) = (Ipv4Addr::from(range.network), range.prefix);
        let why = format!(
            "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid \
             IPs is {first}/{prefix}"
        );
        return Err(failed(asked, &why));
    }
    if used.addresses.contains(&address) {
        return Err(failed(asked, &format!("failed to allocate IP {asked}: provided IP is already allocated")));
    }
    Ok(asked.to_owned())
}

fn failed(asked: &str, why: &str) -> FieldError {
    let value = if asked.is_empty() { json!([]) } else { json!([asked]) };
    FieldError::invalid("spec.clusterIPs", value, why)
}

fn ports(service: &Object) -> &[Value] {
    service.at(&["spec", "ports"]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn node_port(port: &Value) -> Option<u16> {
    port.int_at(&["nodePort"]).and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn protocol(port: &Value) -> String {
    match port.str_at(&["protocol"]) {
        "" => "TCP".to_owned(),
        other => other.to_owned(),
    }
}

fn wants_node_ports(service: &Object) -> bool {
    match service.str_at(&["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => service.at(&["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn assign_ports(used: &Used, service: &mut Object, old: Option<&Object>) -> Result<(), FieldError> {
    let wants = wants_node_ports(service);
    let carries = matches!(service.str_at(&["spec", "type"]), "NodePort" | "LoadBalancer");
    let mut taken: HashSet<(u16, String)> = HashSet::new();
    let mut given: Vec<Option<u16>> = Vec::new();
    let before = old.map(ports).unwrap_or_default();
    for (place, port) in ports(service).iter().enumerate() {
        let protocol = protocol(port);
        // A port keeps its number when the client does not repeat it.
        let kept = before
            .iter()
            .find(|one| one.str_at(&["name"]) == port.str_at(&["name"]) && one.get("port") == port.get("port"));
        let number = match node_port(port).or_else(|| kept.and_then(node_port).filter(|_| wants)) {
            Some(number) => {
                let field = format!("spec.ports[{place}].nodePort");
                let own = before.iter().any(|port| node_port(port) == Some(number));
                check_node_port(used, field, own, number, &protocol)?;
                Some(number)
            }
            None if wants => Some(free_port(used, &taken, &protocol).ok_or_else(|| {
                FieldError::invalid(
                    format!("spec.ports[{place}].nodePort"),
                    0,
                    "failed to allocate a nodePort: range is full",
                )
            })?),
            None => None,
        };
        taken.extend(number.map(|number| (number, protocol)));
        given.push(number);
    }
    let list = service.get_mut("spec").and_then(|spec| spec.get_mut("ports")).and_then(Value::as_array_mut);
    for (port, number) in list.into_iter().flatten().zip(given) {
        match number {
            Some(number) if carries => port.set(&["nodePort"], Value::from(number)),
            _ => drop(port.unset(&["nodePort"])),
        }
    }
    assign_health_check(used, &taken, service, old)
}

/// A port of its own, where load balancers ask a node whether it has endpoints.
fn assign_health_check(
    used: &Used,
    taken: &HashSet<(u16, String)>,
    service: &mut Object,
    old: Option<&Object>,
) -> Result<(), FieldError> {
    const FIELD: &str = "spec.healthCheckNodePort";
    if !service.get("spec").is_some_and(needs_health_check) {
        return Ok(());
    }
    let number = |service: &Object| {
        let number = service.int_at(&["spec", "healthCheckNodePort"]);
        number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
    };
    let before = old.and_then(number);
    let given = match (number(service), before) {
        (Some(asked), Some(before)) if asked != before => {
            let why =
                "cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update";
            return Err(FieldError::invalid(FIELD, asked, why));
        }
        (_, Some(before)) => before,
        (Some(asked), None) => {
            check_node_port(used, FIELD.to_owned(), false, asked, "TCP")?;
            asked
        }
        (None, None) => {
            let full = || FieldError::invalid(FIELD, 0, "failed to allocate a nodePort: range is full");
            free_port(used, taken, "TCP").ok_or_else(full)?
        }
    };
    service.set(&["spec", "healthCheckNodePort"], Value::from(given));
    Ok(())
}

fn check_node_port(used: &Used, field: String, own: bool, number: u16, protocol: &str) -> Result<(), FieldError> {
    if !NODE_PORTS.contains(&number) && !own {
        let why = format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            NODE_PORTS.start(),
            NODE_PORTS.end()
        );
        return Err(FieldError::invalid(field, number, why));
    }
    if used.node_ports.contains(&(number, protocol.to_owned())) {
        return Err(FieldError::invalid(field, number, "provided port is already allocated"));
    }
    Ok(())
}

fn free_port(used: &Used, taken: &HashSet<(u16, String)>, protocol: &str) -> Option<u16> {
    let random = (0..RANDOM_ATTEMPTS).map(|_| fastrand::u16(NODE_PORTS));
    random.chain(NODE_PORTS).find(|number| {
        let key = (*number, protocol.to_owned());
        !used.node_ports.contains(&key) && !taken.contains(&key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 24);

    fn assigned(used: &[Object], mut service: Object, old: Option<&Object>) -> Result<Object, FieldError> {
        let mut others = Used::default();
        for service in used {
            let text = service.to_string();
            others.add(serde_json::from_str(&text).unwrap());
        }
        assign(Range::new(CIDR), &others, &mut service, old).map(|()| service)
    }

    #[test]
    fn a_taken_address_is_refused_in_upstreams_words() {
        let first = json!({"spec": {"clusterIP": "10.96.0.1"}});
        let error = assigned(&[first], json!({"spec": {"clusterIP": "10.96.0.1"}}), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: provided IP is already allocated"
        );
        assert!(assigned(&[], json!({"spec": {"clusterIP": "10.97.0.1"}}), None).is_err());
        assert!(assigned(&[], json!({"spec": {"clusterIP": "10.96.0.255"}}), None).is_err());
    }

    #[test]
    fn every_address_of_the_range_is_given_once() {
        let mut services = Vec::new();
        for _ in 0..254 {
            services.push(assigned(&services, json!({"spec": {}}), None).unwrap());
        }
        let distinct: HashSet<&str> = services.iter().map(|service| service.str_at(&["spec", "clusterIP"])).collect();
        assert_eq!(distinct.len(), 254);
        assert!(assigned(&services, json!({"spec": {}}), None).is_err());
    }

    #[test]
    fn headless_and_external_services_take_none() {
        let headless = assigned(&[], json!({"spec": {"clusterIP": "None"}}), None).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let external = json!({"spec": {"type": "ExternalName", "clusterIP": "10.96.0.9"}});
        assert_eq!(assigned(&[], external, None).unwrap()["spec"].get("clusterIP"), None);
    }

    #[test]
    fn a_service_with_a_port_that_is_none_does_not_keep_others_from_theirs() {
        let odd = json!({"spec": {"clusterIP": "10.96.0.7", "healthCheckNodePort": 70_000}});
        assert!(assigned(&[odd], json!({"spec": {"ports": [{"port": 80}]}}), None).is_ok());
    }

    #[test]
    fn traffic_that_stays_on_its_node_gets_a_port_for_health_checks() {
        let local =
            json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}});
        let made = assigned(&[], local.clone(), None).unwrap();
        let number = made["spec"]["healthCheckNodePort"].as_u64().unwrap();
        assert!((30_000..=32_767).contains(&number) && made["spec"]["ports"][0]["nodePort"] != number);
        assert_eq!(assigned(&[], local.clone(), Some(&made)).unwrap()["spec"]["healthCheckNodePort"], number);
        let mut asking = local.clone();
        asking["spec"]["healthCheckNodePort"] = number.into();
        let taken = assigned(std::slice::from_ref(&made), asking.clone(), None).unwrap_err().to_string();
        assert!(taken.contains("spec.healthCheckNodePort") && taken.contains("already allocated"), "{taken}");
        asking["spec"]["healthCheckNodePort"] = json!(if number == 30_000 { 30_001 } else { 30_000 });
        assert!(assigned(&[], asking, Some(&made)).is_err(), "it cannot be changed");
        let cluster =
            json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}});
        assert_eq!(assigned(&[], cluster, None).unwrap()["spec"].get("healthCheckNodePort"), None);
    }

    #[test]
    fn an_update_keeps_address_and_node_port() {
        let created = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let old = assigned(&[], created.clone(), None).unwrap();
        let number = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        assert!((30_000..=32_767).contains(&number));
        assert_eq!(assigned(&[], created, Some(&old)).unwrap(), old);
        let plain = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": number}]}});
        assert_eq!(assigned(&[], plain, Some(&old)).unwrap()["spec"]["ports"][0].get("nodePort"), None);
        let taken = json!({"spec": {"type": "NodePort", "ports": [{"port": 81, "nodePort": number}]}});
        let mut other = old;
        other["spec"]["ports"][0]["protocol"] = json!("TCP");
        assert!(assigned(&[other], taken, None).is_err());
    }
}
