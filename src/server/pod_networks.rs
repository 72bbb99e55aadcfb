//! Which node has which pods' network, for the relay: from the Nodes that the server holds anyhow.

use crate::api::view::node::Node;
use crate::client::{Informer, Item};
use crate::network::ipam::Cidr;
use crate::tunnel::switch::Directory;
use std::net::Ipv4Addr;

pub struct PodNetworks(pub Informer);

impl Directory for PodNetworks {
    fn pods_of(&self, node: &str) -> Option<Cidr> {
        let pods = pods(&self.0.get("", node)?)?.1;
        // Of two that claim one network it belongs to the older, whatever the younger has written.
        self.owner_of(pods.base()).filter(|(owner, _)| owner == node).map(|(_, pods)| pods)
    }

    fn owner_of(&self, ip: Ipv4Addr) -> Option<(String, Cidr)> {
        let nodes = self.0.list();
        let claims = nodes.iter().filter_map(pods).filter(|(_, pods)| pods.contains(ip));
        let oldest = claims.min_by(|(one, _), (other, _)| age(one).cmp(&age(other)))?;
        Some((oldest.0.metadata.name, oldest.1))
    }
}

fn age(node: &Node) -> (&str, &str) {
    (&node.metadata.creation_timestamp, &node.metadata.name)
}

fn pods(item: &Item) -> Option<(Node, Cidr)> {
    let node: Node = item.view().ok()?;
    let pods = crate::peers::fact::peer(&node)?.pods;
    Some((node, pods))
}
