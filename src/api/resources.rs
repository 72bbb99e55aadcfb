//! What a pod takes of a node and what a node has: amounts in whole numbers, and host ports.

use crate::api::quantity::Quantity;
use crate::api::view::pod::{Container, Pod, PodSpec, ResourceRequirements};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a container without requests counts for when nodes are scored, so that such pods spread too.
const SCORED_CPU_MILLI: i64 = 100;
const SCORED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources. Extended resources and huge pages are in `others`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    pub pods: i64,
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    /// From quantities as an object has them.
    pub fn parse<'a>(quantities: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in quantities {
            // The API has validated quantities; one that cannot be read counts for nothing.
            let quantity = Quantity::from_value(quantity).unwrap_or(Quantity::from_units(0));
            let whole = quantity.value();
            match name.as_str() {
                "cpu" => resources.cpu_milli = quantity.milli_value(),
                "memory" => resources.memory_bytes = whole,
                "ephemeral-storage" => resources.ephemeral_bytes = whole,
                "pods" => resources.pods = whole,
                _ => drop(resources.others.insert(name.clone(), whole)),
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.each(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    fn each(&mut self, other: &Self, combine: fn(i64, i64) -> i64) {
        self.cpu_milli = combine(self.cpu_milli, other.cpu_milli);
        self.memory_bytes = combine(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = combine(self.ephemeral_bytes, other.ephemeral_bytes);
        self.pods = combine(self.pods, other.pods);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = combine(*mine, *amount);
        }
    }
}

/// What the pod needs at its peak: containers and sidecars together, or the largest init step.
pub fn requests(spec: &PodSpec) -> Resources {
    let mut total = sum(&spec.containers);
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in &spec.init_containers {
        let own = of(&container.resources);
        let mut step = own.clone();
        step.add(&sidecars);
        peak.raise_to(&step);
        if container.restart_policy == "Always" {
            sidecars.add(&own);
        }
    }
    total.add(&sidecars);
    total.raise_to(&peak);
    override_with_pod_level(&mut total, spec);
    let overhead: BTreeMap<String, Value> =
        spec.overhead.iter().map(|(name, quantity)| (name.clone(), Value::from(quantity.as_str()))).collect();
    total.add(&Resources::parse(&overhead));
    total.pods = 1;
    total
}

/// What the pod counts for in scores: requests, with defaults where a container has none.
pub fn scored(spec: &PodSpec, requests: &Resources) -> (i64, i64) {
    let (mut cpu, mut memory) = (requests.cpu_milli, requests.memory_bytes);
    for container in &spec.containers {
        let own = of(&container.resources);
        cpu += if own.cpu_milli == 0 { SCORED_CPU_MILLI } else { 0 };
        memory += if own.memory_bytes == 0 { SCORED_MEMORY_BYTES } else { 0 };
    }
    (cpu, memory)
}

fn sum(containers: &[Container]) -> Resources {
    containers.iter().fold(Resources::default(), |mut total, container| {
        total.add(&of(&container.resources));
        total
    })
}

/// Requests; a limit stands for a request that is not made.
fn of(requirements: &ResourceRequirements) -> Resources {
    let limits = requirements.limits.iter().filter(|(name, _)| !requirements.requests.contains_key(*name));
    Resources::parse(limits.chain(&requirements.requests))
}

/// Resources of the pod as a whole stand instead of its containers' sums.
fn override_with_pod_level(total: &mut Resources, spec: &PodSpec) {
    let Some(requirements) = &spec.resources else { return };
    let whole = of(requirements);
    if whole.cpu_milli > 0 {
        total.cpu_milli = whole.cpu_milli;
    }
    if whole.memory_bytes > 0 {
        total.memory_bytes = whole.memory_bytes;
    }
}

/// A port a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: u16,
}

impl HostPort {
    /// The wildcard address clashes with every address.
    pub fn clashes(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// Ports of containers and sidecars that the node itself gives.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
            let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            Some(HostPort { ip: ip.to_owned(), protocol: protocol.to_owned(), port: number })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).expect("spec")
    }

    #[test]
    fn a_pod_needs_its_containers_or_its_largest_init_step() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
        for (init, containers, expected) in [
            (json!([]), json!([container("1"), container("500m")]), 1500),
            (json!([container("2")]), json!([container("1")]), 2000),
            (json!([sidecar]), json!([container("1")]), 1100),
            (json!([sidecar, container("2")]), json!([container("1")]), 2100),
            (json!([container("2"), sidecar]), json!([container("1")]), 2000),
        ] {
            let spec = spec(json!({"initContainers": init, "containers": containers}));
            assert_eq!(requests(&spec).cpu_milli, expected, "{init} {containers}");
        }
    }

    #[test]
    fn limits_pod_level_resources_and_overhead_count() {
        let limits = spec(json!({"containers": [{"resources": {"limits": {"memory": "1Ki", "a.b/c": 2}}}]}));
        assert_eq!(requests(&limits).memory_bytes, 1024);
        assert_eq!(requests(&limits).others["a.b/c"], 2);
        let whole = spec(json!({
            "containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "resources": {"requests": {"cpu": "3"}}, "overhead": {"cpu": "10m"},
        }));
        assert_eq!(requests(&whole).cpu_milli, 3010);
    }

    #[test]
    fn pods_without_requests_are_scored_as_if_they_had_some() {
        let spec = spec(json!({"containers": [{}, {"resources": {"requests": {"cpu": "1", "memory": "1"}}}]}));
        let requests = requests(&spec);
        assert_eq!(scored(&spec, &requests), (1100, SCORED_MEMORY_BYTES + 1));
    }

    #[test]
    fn a_wildcard_host_address_clashes_with_all() {
        let port = |ip: &str| HostPort { ip: ip.into(), protocol: "TCP".into(), port: 80 };
        assert!(port("0.0.0.0").clashes(&port("10.0.0.1")));
        assert!(!port("10.0.0.2").clashes(&port("10.0.0.1")));
        assert!(!port("0.0.0.0").clashes(&HostPort { protocol: "UDP".into(), ..port("0.0.0.0") }));
    }
}
