//! The tunnel over a real socket: who gets one, what it carries, and the Lease it keeps.

use super::wire::serve;
use super::*;
use crate::api::object::ObjectExt;
use crate::client::kubeconfig::Access;
use crate::client::remote::Remote;
use crate::client::{LEASES, NODES, SECRETS, WatchEvent, uplink};
use crate::network::ipam::Cidr;
use crate::network::resolve::Resolver;
use crate::pki::certificate::{self, Credentials};
use crate::pki::node_key::{self, NODES_GROUP, NodeKey};
use crate::registry::ListOptions;
use crate::tunnel::node::Doors;
use crate::tunnel::switch::{Directory, Switch};
use crate::tunnel::{self, Streams, relay};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// A client with a certificate of this user.
fn client(served: &super::wire::Served, user: &str, group: Option<&str>) -> Remote {
    with_credentials(served, &served.cluster.server.pki().issue_client(user, group).unwrap())
}

/// A client of a node whose key is on record, as joining leaves it.
async fn node_client(served: &super::wire::Served, node: &str) -> Remote {
    let pki = served.cluster.server.pki();
    let credentials = pki.issue_client(&format!("system:node:{node}"), Some(NODES_GROUP)).unwrap();
    let (certificate, _) = credentials.der().unwrap();
    let record = NodeKey::new(&certificate::key_hash(&certificate).unwrap(), BTreeMap::new());
    served.remote.create(SECRETS, node_key::NAMESPACE, record.object(node)).await.unwrap();
    with_credentials(served, &credentials)
}

fn with_credentials(served: &super::wire::Served, credentials: &Credentials) -> Remote {
    let pki = served.cluster.server.pki();
    let access = Access {
        server: format!("https://{}", served.address),
        ca_pem: pki.ca_pem().into_bytes(),
        client_certificate_pem: credentials.certificate_pem.clone().into_bytes(),
        client_key_pem: credentials.key_pem.clone().into_bytes(),
        ..Access::default()
    };
    Remote::new(access, Resolver::default()).unwrap()
}

/// A node's uplink, its state and the streams that reach it.
async fn uplink(served: &mut super::wire::Served, node: &str) -> (watch::Receiver<uplink::State>, Streams) {
    let remote = node_client(served, node).await;
    let (sender, streams) = mpsc::channel(4);
    let (state, states) = watch::channel(uplink::State::default());
    let changed = watch::channel(0).1;
    let shutdown = served.tree.shutdown();
    served.tree.spawn("uplink", uplink::run(remote, sender, changed, state, watch::Sender::new(None), shutdown));
    (states, streams)
}

#[tokio::test]
async fn a_node_is_reached_through_the_tunnel_it_opens_and_its_lease_is_kept() {
    let mut served = serve().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}});
    let node = served.remote.create(NODES, "", node).await.unwrap().object().unwrap();
    let (mut state, mut streams) = uplink(&mut served, "a").await;
    state.wait_for(|state| matches!(state, uplink::State::Connected)).await.unwrap();
    let tunnels = served.cluster.server.tunnels().clone();
    // The node knows of the tunnel a moment before the server has taken it over.
    while !tunnels.is_connected("a") {
        tokio::task::yield_now().await;
    }
    let mut near = tunnels.dial("a").await.unwrap();
    let mut far = streams.recv().await.unwrap();
    near.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    far.read_exact(&mut read).await.unwrap();
    far.write_all(&read).await.unwrap();
    near.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");

    let lease = loop {
        match served.remote.get(LEASES, "kube-node-lease", "a").await {
            Ok(lease) => break lease.object().unwrap(),
            Err(error) => assert!(error.is_not_found(), "{error}"),
        }
    };
    assert_eq!(lease.str_at(&["spec", "holderIdentity"]), "a");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node.uid());
    served.tree.end(Duration::from_secs(5)).await;
    assert!(tunnels.dial("a").await.is_err(), "the tunnel ends with the server");
}

#[tokio::test]
async fn nobody_else_gets_a_tunnel() {
    let served = serve().await;
    let cases = [
        (client(&served, "alice", None), 403),
        (client(&served, "system:node:a", None), 403),
        (client(&served, "edgelet-admin", Some("system:masters")), 403),
    ];
    for (remote, code) in cases {
        for (path, protocol) in [(tunnel::PATH, tunnel::PROTOCOL), (relay::PATH, relay::PROTOCOL)] {
            let error = remote.upgrade(path, protocol).await.err().expect("refused");
            assert_eq!(error.code, code, "{error}");
        }
    }
    let node = node_client(&served, "a").await;
    let error = node.upgrade(tunnel::PATH, "websocket").await.err().expect("refused");
    assert_eq!((error.code, error.message.contains("edgelet-tunnel")), (400, true), "{error}");
    assert!(!served.cluster.server.tunnels().is_connected("a"));
}

/// Nodes `a` and `b` have 10.42.0.0/24 and 10.42.1.0/24.
struct PodNetworks;

impl Directory for PodNetworks {
    fn pods_of(&self, node: &str) -> Option<Cidr> {
        ["a", "b"]
            .iter()
            .position(|name| *name == node)
            .map(|index| CLUSTER.parse::<Cidr>().unwrap().parts(24).nth(index).unwrap())
    }

    fn owner_of(&self, ip: Ipv4Addr) -> Option<(String, Cidr)> {
        let owns = |node: &&str| self.pods_of(node).is_some_and(|pods| pods.contains(ip));
        ["a", "b"].into_iter().find(owns).and_then(|node| Some((node.to_owned(), self.pods_of(node)?)))
    }
}

const CLUSTER: &str = "10.42.0.0/16";

#[tokio::test]
async fn packets_of_one_node_reach_another_through_the_server() {
    let mut served = serve().await;
    let tunnels = served.cluster.server.tunnels().clone();
    let (a, b) = (node_client(&served, "a").await, node_client(&served, "b").await);
    let error = a.upgrade(relay::PATH, relay::PROTOCOL).await.err().expect("refused");
    assert_eq!(error.code, 404, "no relay here: {error}");
    served.cluster.server.relay_through(Switch::new(tunnels.clone(), Box::new(PodNetworks)));
    let (sender, _streams) = mpsc::channel(4);
    let doors = Doors::from(sender);
    let (knocks, shutdown) = (doors.relay.clone(), served.tree.shutdown());
    let states = watch::channel(uplink::State::default()).0;
    served.tree.spawn(
        "uplink",
        uplink::run(b.clone(), doors, watch::channel(0).1, states, watch::Sender::new(None), shutdown),
    );
    while !tunnels.is_connected("b") {
        tokio::task::yield_now().await;
    }
    // A stream of `a`; `b` opens one when the server knocks.
    let mut from = a.upgrade(relay::PATH, relay::PROTOCOL).await.unwrap();
    let mut packet = [7; 40];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&[10, 42, 0, 9]);
    packet[16..20].copy_from_slice(&[10, 42, 1, 9]);
    from.write_all(&[&[0, 40], &packet[..]].concat()).await.unwrap();
    knocks.notified().await;
    let mut to = b.upgrade(relay::PATH, relay::PROTOCOL).await.unwrap();
    let mut read = [0; 42];
    to.read_exact(&mut read).await.unwrap();
    assert_eq!(read[2..], packet);
    served.tree.end(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_peer_that_speaks_nonsense_after_the_upgrade_is_dropped() {
    let served = serve().await;
    let node = node_client(&served, "a").await;
    let mut io = node.upgrade(tunnel::PATH, tunnel::PROTOCOL).await.unwrap();
    io.write_all(&[0xff; 4096]).await.unwrap();
    let mut rest = Vec::new();
    // Whatever it says, it ends.
    let ended = tokio::time::timeout(Duration::from_secs(20), io.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
    assert!(!served.cluster.server.tunnels().is_connected("a"));
}

#[tokio::test]
async fn a_node_watches_many_objects_and_is_answered_all_the_same() {
    let served = serve().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}});
    served.remote.create(NODES, "", node).await.unwrap();
    let node = node_client(&served, "a").await;
    let options = ListOptions { field_selector: "metadata.name=a".into(), ..ListOptions::default() };
    let patience = Duration::from_secs(10);
    let mut watches = Vec::new();
    for number in 0..900 {
        let begun = tokio::time::timeout(patience, node.watch(NODES, "", &options)).await;
        let mut watch = begun.unwrap_or_else(|_| panic!("watch {number} waits")).unwrap();
        assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Added(_)))), "watch {number}");
        watches.push(watch);
    }
    // One too many waits for the end of another, and no plain request does.
    let mut waiting = std::pin::pin!(node.watch(NODES, "", &options));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    tokio::time::timeout(patience, node.get(NODES, "", "a")).await.expect("answered").unwrap();
    watches.pop();
    assert!(tokio::time::timeout(patience, waiting).await.expect("it begins").is_ok());
}
