//! The Node, its Lease and the Namespace as the loops read them.

use super::meta::{Condition, Meta};
use serde_json::Value;
use std::collections::BTreeMap;

views! {
    Node { metadata: Meta, spec: NodeSpec, status: NodeStatus, }

    NodeSpec {
        #[serde(rename = "podCIDR")]
        pod_cidr: String,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
        #[serde(rename = "providerID")]
        provider_id: String,
        unschedulable: bool,
        taints: Vec<Taint>,
    }
    Taint { key: String, value: String, effect: String, time_added: Option<String>, }

    NodeStatus {
        /// Quantities as written.
        capacity: BTreeMap<String, Value>,
        allocatable: BTreeMap<String, Value>,
        conditions: Vec<Condition>,
        addresses: Vec<NodeAddress>,
        images: Vec<NodeImage>,
    }
    NodeAddress { r#type: String, address: String, }
    NodeImage { names: Vec<String>, size_bytes: i64, }

    Lease { metadata: Meta, spec: LeaseSpec, }
    LeaseSpec {
        holder_identity: String,
        lease_duration_seconds: Option<i64>,
        acquire_time: Option<String>,
        renew_time: Option<String>,
    }

    Namespace { metadata: Meta, spec: NamespaceSpec, status: NamespaceStatus, }
    NamespaceSpec { finalizers: Vec<String>, }
    NamespaceStatus { phase: String, conditions: Vec<Condition>, }
}

impl Node {
    pub fn condition(&self, r#type: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.r#type == r#type)
    }
}
