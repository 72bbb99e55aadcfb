//! What this node must know of another, read from its Node object. Pure.

use crate::api::view::node::Node;
use crate::network::ipam::Cidr;
use crate::network::wireguard::Key;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// The public key of a node's WireGuard device, as `wg` writes it.
const KEY_ANNOTATION: &str = "edgelet.io/wireguard-public-key";
/// `wireguard`: the node's administrator wants nothing of its pods in the clear.
const MODE_ANNOTATION: &str = "edgelet.io/pod-network";
/// Where the node is reached from outside its own network.
const EXTERNAL_ANNOTATION: &str = "edgelet.io/external-ip";

/// A node as its peers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `spec.podCIDR`.
    pub pods: Cidr,
    /// Its `InternalIP`; `None` until it has said so.
    pub address: Option<Ipv4Addr>,
    /// Whether it is known to run: when it comes back, ways are tried anew.
    pub is_ready: bool,
    pub notice: Notice,
}

/// What a node tells its peers in annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    pub key: Option<Key>,
    pub wants_wireguard: bool,
    pub external: Option<Ipv4Addr>,
}

impl Notice {
    pub fn read(node: &Node) -> Self {
        let text = |name: &str| node.metadata.annotations.get(name);
        let key = text(KEY_ANNOTATION).and_then(|key| STANDARD.decode(key).ok()?.try_into().ok());
        let wants_wireguard = text(MODE_ANNOTATION).is_some_and(|mode| mode == "wireguard");
        Self { key, wants_wireguard, external: text(EXTERNAL_ANNOTATION).and_then(|ip| ip.parse().ok()) }
    }

    /// A merge patch of the Node.
    pub fn patch(&self) -> Value {
        let annotations = json!({
            KEY_ANNOTATION: self.key.map(|key| STANDARD.encode(key)),
            MODE_ANNOTATION: self.wants_wireguard.then_some("wireguard"),
            EXTERNAL_ANNOTATION: self.external,
        });
        json!({"metadata": {"annotations": annotations}})
    }
}

/// `None` for a Node that has no pod network yet, or another address family.
pub fn peer(node: &Node) -> Option<Peer> {
    let first = [&node.spec.pod_cidr].into_iter().chain(&node.spec.pod_cidrs);
    let pods = first.filter_map(|text| text.parse().ok()).next()?;
    Some(Peer {
        pods,
        address: address(node),
        is_ready: node.condition("Ready").is_some_and(|condition| condition.status == "True"),
        notice: Notice::read(node),
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
        type Read<'a> = Option<(&'a str, Option<&'a str>, bool)>;
        let cases: [(Value, Value, Read); 4] = [
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
                notice: Notice::default(),
            });
            assert_eq!(peer(&node), expected);
        }
    }

    #[test]
    fn what_a_node_tells_is_read_by_its_peers() {
        let external = Some(Ipv4Addr::new(203, 0, 113, 9));
        for notice in [Notice::default(), Notice { key: Some([7; 32]), wants_wireguard: true, external }] {
            let mut node = notice.patch();
            let annotations = node["metadata"]["annotations"].as_object_mut().unwrap();
            annotations.retain(|_, value| !value.is_null());
            assert_eq!(Notice::read(&serde_json::from_value(node).unwrap()), notice);
        }
        let broken: Node =
            serde_json::from_value(json!({"metadata": {"annotations": {KEY_ANNOTATION: "short"}}})).unwrap();
        assert_eq!(Notice::read(&broken), Notice::default());
    }
}
