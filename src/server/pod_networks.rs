//! Which node has which pods' network, for the relay: from the Nodes that the server holds anyhow.

use crate::api::view::node::Node;
use crate::client::{Informer, Item};
use crate::network::ipam::Cidr;
use crate::tunnel::switch::Directory;
use std::net::Ipv4Addr;

/// Nodes by their pods' network: a packet to nobody must not cost a look at every node.
const BY_NETWORK: &str = "pod network";
/// Of pods' networks.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;

pub struct PodNetworks(Informer);

impl PodNetworks {
    pub fn new(nodes: Informer) -> Self {
        nodes.index(BY_NETWORK, |item| pods(item).map(|(_, pods)| pods.to_string()).into_iter().collect());
        Self(nodes)
    }
}

impl Directory for PodNetworks {
    fn pods_of(&self, node: &str) -> Option<Cidr> {
        let pods = pods(&self.0.get("", node)?)?.1;
        // Of two that claim one network it belongs to the older, whatever the younger has written.
        self.owner_of(pods.base()).filter(|(owner, _)| owner == node).map(|(_, pods)| pods)
    }

    fn owner_of(&self, ip: Ipv4Addr) -> Option<(String, Cidr)> {
        let claims = PREFIXES.flat_map(|prefix| self.0.by_index(BY_NETWORK, &Cidr::new(ip, prefix).to_string()));
        let claims: Vec<_> = claims.filter_map(|item| pods(&item)).collect();
        let (node, pods) = claims.into_iter().min_by(|(one, _), (other, _)| age(one).cmp(&age(other)))?;
        Some((node.metadata.name, pods))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::Kinds;
    use crate::client::{Client, Informers, Local, NODES};
    use crate::clock::Clock;
    use crate::registry::{Registry, RegistryConfig};
    use crate::store::MemoryStore;
    use serde_json::json;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_pods_network_is_the_older_nodes_and_an_address_of_nobody_has_no_owner() {
        let clock = Clock::simulated("2026-11-23T00:00:00Z".parse().unwrap());
        let store = Arc::new(MemoryStore::default());
        let registry = Registry::new(RegistryConfig::default(), store, Kinds::default(), clock.clone(), Arc::default());
        let client = Client::Local(Local::new(Arc::new(registry), "test"));
        for (name, cidr) in [("zed", "10.42.1.0/24"), ("able", "10.42.1.0/24"), ("wide", "10.43.0.0/16")] {
            let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            client.create(NODES, "", json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
            clock.sleep(std::time::Duration::from_secs(2)).await;
        }
        let nodes = Informers::new(client).all(NODES);
        let networks = PodNetworks::new(nodes.clone());
        nodes.synced().await;
        let owner = |ip: &str| networks.owner_of(ip.parse().unwrap()).map(|(node, pods)| format!("{node} {pods}"));
        assert_eq!(owner("10.42.1.7").as_deref(), Some("zed 10.42.1.0/24"));
        assert_eq!(owner("10.43.200.7").as_deref(), Some("wide 10.43.0.0/16"));
        assert_eq!(owner("10.42.2.7"), None);
        assert_eq!((networks.pods_of("zed").is_some(), networks.pods_of("able")), (true, None));
    }
}
