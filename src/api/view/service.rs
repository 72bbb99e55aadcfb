//! Services and what stands behind them, as the controllers, the proxy and DNS read them.

use super::meta::Meta;
use serde_json::Value;
use std::collections::BTreeMap;

views! {
    Service { metadata: Meta, spec: ServiceSpec, status: ServiceStatus, }

    ServiceSpec {
        r#type: String,
        selector: BTreeMap<String, String>,
        ports: Vec<ServicePort>,
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<String>,
        #[serde(rename = "externalIPs")]
        external_ips: Vec<String>,
        #[serde(rename = "loadBalancerIP")]
        load_balancer_ip: String,
        load_balancer_source_ranges: Vec<String>,
        external_name: String,
        ip_families: Vec<String>,
        publish_not_ready_addresses: bool,
        session_affinity: String,
        session_affinity_config: Option<SessionAffinityConfig>,
        internal_traffic_policy: String,
        external_traffic_policy: String,
        traffic_distribution: String,
        health_check_node_port: u16,
    }
    ServicePort {
        name: String,
        protocol: String,
        port: u16,
        /// A number or the name of a container port.
        target_port: Value,
        node_port: u16,
        app_protocol: Option<String>,
    }
    SessionAffinityConfig {
        #[serde(rename = "clientIP")]
        client_ip: Option<ClientIpConfig>,
    }
    ClientIpConfig { timeout_seconds: Option<u32>, }
    ServiceStatus { load_balancer: LoadBalancerStatus, }
    LoadBalancerStatus { ingress: Vec<LoadBalancerIngress>, }
    LoadBalancerIngress { ip: String, hostname: String, ip_mode: String, }

    EndpointSlice {
        metadata: Meta,
        address_type: String,
        endpoints: Vec<Endpoint>,
        ports: Vec<EndpointPort>,
    }
    Endpoint {
        addresses: Vec<String>,
        conditions: EndpointConditions,
        #[serde(skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        node_name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        target_ref: Option<TargetRef>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hints: Option<EndpointHints>,
    }
    /// For whom the endpoint is, by the Service's `trafficDistribution`.
    EndpointHints {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        for_zones: Vec<Named>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        for_nodes: Vec<Named>,
    }
    Named { name: String, }
    /// Absent `ready` and `serving` mean true.
    EndpointConditions {
        #[serde(skip_serializing_if = "Option::is_none")]
        ready: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        serving: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        terminating: Option<bool>,
    }
    TargetRef { kind: String, namespace: String, name: String, uid: String, }
    EndpointPort {
        name: String,
        protocol: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")]
        app_protocol: Option<String>,
    }
}

impl Service {
    /// `clusterIP: None`: the name resolves to the endpoints themselves.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }
}
