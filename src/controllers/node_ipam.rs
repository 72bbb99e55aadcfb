//! Gives every Node a part of the cluster's pod network, `spec.podCIDR`: the lowest that is free, never one to two.
//! It is taken back only when the Node is deleted; a Node that has one keeps it.

use super::Tools;
use super::runner::{Reconcile, Source};
use crate::api::status::Result;
use crate::api::view::meta::Meta;
use crate::api::view::node::Node;
use crate::client::events::Type;
use crate::client::informer::Change;
use crate::client::{EventRecorder, Informer, Item, NODES, ObjectRef, PatchType};
use crate::network::ipam::Cidr;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A part that the node would like, since its pods live there already; given if it is free.
const WISH_ANNOTATION: &str = "edgelet.io/pod-cidr";

/// What of a Node says which part it has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Placed {
    metadata: PlacedMeta,
    spec: PlacedSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PlacedMeta {
    name: String,
    creation_timestamp: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PlacedSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

pub struct Controller {
    tools: Tools,
    recorder: EventRecorder,
    cluster: Cidr,
    mask: u8,
    nodes: Informer,
    /// Given out, perhaps not to be seen in the cache yet; by Node.
    given: Mutex<BTreeMap<String, Cidr>>,
    /// Nodes that found nothing free: looked at again when a Node goes.
    waiting: Arc<Mutex<BTreeSet<String>>>,
}

impl Controller {
    /// `mask` is the prefix length of a node's part.
    pub fn new(tools: &Tools, cluster: Cidr, mask: u8) -> (Arc<Self>, Vec<Source>) {
        let nodes = tools.informers.all(NODES);
        let waiting = Arc::new(Mutex::new(BTreeSet::new()));
        let waits = waiting.clone();
        let keys = move |change: &Change| {
            let mut keys = vec![change.key.clone()];
            if change.new.is_none() {
                keys.append(&mut waits.lock().expect("no panic while locked").clone().into_iter().collect());
            }
            keys
        };
        let sources = vec![Source::new(&nodes, keys)];
        let recorder = tools.recorder("cidrAllocator");
        let controller =
            Self { tools: tools.clone(), recorder, cluster, mask, nodes, given: Mutex::default(), waiting };
        (Arc::new(controller), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        self.waiting.lock().expect("no panic while locked").remove(key);
        let Some(item) = self.nodes.by_key(key) else { return Ok(None) };
        let node: Node = item.view()?;
        let name = &node.metadata.name;
        if node.metadata.is_deleting() {
            return Ok(None);
        }
        let others = self.others(name);
        if !node.spec.pod_cidr.is_empty() {
            self.check(&node, &others);
            return Ok(None);
        }
        let wish = node.metadata.annotations.get(WISH_ANNOTATION).and_then(|text| text.parse().ok());
        let Some(part) = self.give(name, wish, &others) else {
            self.waiting.lock().expect("no panic while locked").insert(key.to_owned());
            self.report(&node.metadata, format!("Node {name} status is now: CIDRNotAvailable"));
            return Ok(None);
        };
        // The revision: a Node that was deleted and made again meanwhile is another one.
        let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": part.to_string(), "podCIDRs": [part.to_string()]}});
        self.tools.client.patch(NODES, "", name, "", PatchType::Merge, patch).await?;
        tracing::info!(node = name, pod_cidr = %part, "node has its part of the pod network");
        Ok(None)
    }

    /// Every Node but this one.
    fn others(&self, name: &str) -> Vec<Placed> {
        let read = |item: &Item| item.view::<Placed>().ok().filter(|other| other.metadata.name != name);
        self.nodes.list().iter().filter_map(read).collect()
    }

    /// The part of a Node that has none: what it was given before, else one that is free.
    fn give(&self, name: &str, wish: Option<Cidr>, others: &[Placed]) -> Option<Cidr> {
        let mut given = self.given.lock().expect("no panic while locked");
        // A Node that is gone from the cache cannot be written any more: its revision is.
        given.retain(|holder, _| holder == name || others.iter().any(|other| other.metadata.name == *holder));
        let seen = others.iter().flat_map(|other| &other.spec.pod_cidrs).filter_map(|text| text.parse().ok());
        let held = given.iter().filter(|(holder, _)| *holder != name).map(|(_, part)| *part);
        let taken: Vec<Cidr> = seen.chain(held).collect();
        let before = given.get(name).copied().or(wish);
        let part = allocate(self.cluster, self.mask, before, &taken)?;
        given.insert(name.to_owned(), part);
        Some(part)
    }

    /// Whoever wrote a part that an older Node has is told: their pods share addresses.
    fn check(&self, node: &Node, others: &[Placed]) {
        let Ok(own) = node.spec.pod_cidr.parse::<Cidr>() else { return };
        let age = (&node.metadata.creation_timestamp, &node.metadata.name);
        let clash = others.iter().find(|other| {
            let parts = other.spec.pod_cidrs.iter().filter_map(|text| text.parse::<Cidr>().ok());
            (&other.metadata.creation_timestamp, &other.metadata.name) < age
                && parts.into_iter().any(|part| part.overlaps(own))
        });
        if let Some(other) = clash {
            let (name, other) = (&node.metadata.name, &other.metadata.name);
            let message = format!("Node {name} status is now: CIDRNotAvailable: {own} is in use by Node {other}");
            self.report(&node.metadata, message);
        }
    }

    fn report(&self, node: &Meta, message: String) {
        self.recorder.event(&ObjectRef::new("v1", "Node", node), Type::Normal, "CIDRNotAvailable", message);
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}

/// `before` if it is part of the cluster's network and free, else the lowest free part; `None`: none is free.
fn allocate(cluster: Cidr, mask: u8, before: Option<Cidr>, taken: &[Cidr]) -> Option<Cidr> {
    let free = |part: &Cidr| !taken.iter().any(|other| other.overlaps(*part));
    let inside = |part: &Cidr| part.prefix() >= cluster.prefix() && cluster.contains(part.base());
    before.filter(|part| inside(part) && free(part)).or_else(|| cluster.parts(mask).find(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_part_is_given() {
        type Case<'a> = (&'a str, u8, Option<&'a str>, &'a [&'a str], Option<&'a str>);
        let cases: [Case; 10] = [
            ("10.42.0.0/16", 24, None, &[], Some("10.42.0.0/24")),
            ("10.42.0.0/16", 24, None, &["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24")),
            // Somebody's larger or smaller part counts too.
            ("10.42.0.0/16", 24, None, &["10.42.0.0/23"], Some("10.42.2.0/24")),
            ("10.42.0.0/16", 24, None, &["10.42.0.128/25"], Some("10.42.1.0/24")),
            ("10.42.0.0/16", 24, None, &["192.168.0.0/24"], Some("10.42.0.0/24")),
            // What was given before stays, unless it is another's or elsewhere.
            ("10.42.0.0/16", 24, Some("10.42.7.0/24"), &["10.42.0.0/24"], Some("10.42.7.0/24")),
            ("10.42.0.0/16", 24, Some("10.42.7.0/24"), &["10.42.7.0/25"], Some("10.42.0.0/24")),
            ("10.42.0.0/16", 24, Some("10.99.7.0/24"), &[], Some("10.42.0.0/24")),
            ("10.42.0.0/23", 24, None, &["10.42.0.0/24", "10.42.1.0/24"], None),
            // A cluster as small as one node.
            ("10.42.0.0/25", 24, None, &[], Some("10.42.0.0/25")),
        ];
        for (cluster, mask, before, taken, expected) in cases {
            let taken: Vec<Cidr> = taken.iter().map(|text| cidr(text)).collect();
            let got = allocate(cidr(cluster), mask, before.map(cidr), &taken);
            assert_eq!(got, expected.map(cidr), "{cluster} /{mask} {before:?} {taken:?}");
        }
    }

    #[test]
    fn nobody_shares_until_the_last_part_is_gone() {
        let mut taken = Vec::new();
        while let Some(part) = allocate(cidr("10.42.0.0/16"), 24, None, &taken) {
            assert!(!taken.iter().any(|other: &Cidr| other.overlaps(part)));
            taken.push(part);
        }
        assert_eq!(taken.len(), 256);
    }
}
