//! What this node must know of another, read from its Node object. Pure.

use crate::api::view::node::Node;
use crate::network::ipam::Cidr;
use std::net::Ipv4Addr;

/// A node as its peers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `spec.podCIDR`.
    pub pods: Cidr,
    /// Its `InternalIP`; `None` until it has said so.
    pub address: Option<Ipv4Addr>,
    /// Whether it is known to run: when it comes back, ways are tried anew.
    pub is_ready: bool,
}

/// `None` for a Node that has no pod network yet, or another address family.
pub fn peer(node: &Node) -> Option<Peer> {
    let first = [&node.spec.pod_cidr].into_iter().chain(&node.spec.pod_cidrs);
    let pods = first.filter_map(|text| text.parse().ok()).next()?;
    Some(Peer {
        pods,
        address: address(node),
        is_ready: node.condition("Ready").is_some_and(|condition| condition.status == "True"),
    })
}

/// Its first IPv4 `InternalIP`.
pub fn address(node: &Node) -> Option<Ipv4Addr> {
    let of_kind = node.status.addresses.iter().filter(|address| address.r#type == "InternalIP");
    of_kind.filter_map(|address| address.address.parse().ok()).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nodes_are_read() {
        let addresses = json!([{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "fd00::2"},
            {"type": "InternalIP", "address": "192.168.1.2"}]);
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let cases: [(Value, Value, Option<(&str, Option<&str>, bool)>); 4] = [
            (
                json!({"podCIDR": "10.42.1.0/24"}),
                json!({"addresses": addresses, "conditions": ready}),
                Some(("10.42.1.0/24", Some("192.168.1.2"), true)),
            ),
            (json!({"podCIDRs": ["fd01::/64", "10.42.1.0/24"]}), json!({}), Some(("10.42.1.0/24", None, false))),
            (json!({}), json!({"addresses": addresses}), None),
            (json!({"podCIDR": "fd01::/64"}), json!({}), None),
        ];
        for (spec, status, expected) in cases {
            let node: Node =
                serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec, "status": status})).unwrap();
            let expected = expected.map(|(pods, address, is_ready)| Peer {
                pods: pods.parse().unwrap(),
                address: address.map(|ip| ip.parse().unwrap()),
                is_ready,
            });
            assert_eq!(peer(&node), expected);
        }
    }
}
