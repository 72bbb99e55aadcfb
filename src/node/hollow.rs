//! A node without a machine, for tests and benchmarks of many nodes in one process: it joins as a board does and keeps
//! the same connections, watches and replica, but its pods run in the fake runtime, and it has neither network nor
//! proxy nor DNS.

use super::joined::Ways;
use super::joining::Joining;
use super::{NodeLink, joined};
use crate::client::uplink::State;
use crate::client::{ENDPOINTSLICES, Informers, NODES, Remote, SERVICES};
use crate::clock::Clock;
use crate::config::{Config, Typed};
use crate::kubelet::Kubelet;
use crate::pki::join_token::JoinToken;
use crate::runtime::fake::FakeRuntime;
use crate::supervise::Tree;
use crate::sys::tpm::Tpm;
use anyhow::Context;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A running node; it ends with `end`.
pub struct HollowNode {
    pub name: String,
    pub informers: Informers,
    pub remote: Remote,
    pub runtime: FakeRuntime,
    /// Whether its tunnel stands.
    pub state: watch::Receiver<State>,
    tree: Tree,
}

/// What makes one node another than the next.
pub struct HollowConfig {
    pub server: String,
    pub name: String,
    /// Shown as its address; nobody listens there.
    pub ip: Ipv4Addr,
    /// `KEY=VALUE`.
    pub labels: Vec<String>,
}

impl HollowNode {
    /// Joins with a token and runs; returns once the server has given it addresses for pods.
    pub async fn join(hollow: &HollowConfig, token: &str, directory: &Path) -> anyhow::Result<Self> {
        let identity = joined::identity(directory);
        let ways = joined::Ways::of_machine();
        let joining = Joining {
            server: hollow.server.clone(),
            token: JoinToken::parse(token)?,
            node_name: hollow.name.clone(),
            reach: ways.reach.clone(),
            clock: Clock::real(),
        };
        let joined = joining.enroll(&identity, &|_| {}).await?;
        let facts = joined::facts(&identity)?.context("the server has told nothing of its cluster")?;
        let typed = Typed {
            node_name: Some(hollow.name.clone()),
            node_ip: Some(IpAddr::V4(hollow.ip)),
            node_label: hollow.labels.clone(),
            data_dir: Some(directory.to_owned()),
            run_dir: Some(directory.join("run")),
            log_dir: Some(directory.join("logs")),
            ..Typed::default()
        };
        let config = typed.in_cluster(facts).check()?;
        let mut tree = Tree::default();
        // Hundreds of them have one TPM at most.
        let ways = Ways { tpm: Tpm::at(&directory.join("no-tpm")), ..ways };
        let uplink = joined::connect(&config, &identity, &joined, ways, joining.clock, &mut tree).await?;
        let informers = uplink.link.informers.clone();
        let runtime = start(&config, uplink.link, &mut tree).await?;
        let (remote, state) = (uplink.remote, uplink.state);
        Ok(Self { name: hollow.name.clone(), informers, remote, runtime, state, tree })
    }

    /// As the end of its process: the server sees closed connections.
    pub async fn end(self, grace: Duration) {
        self.informers.end();
        self.tree.end(grace).await;
    }
}

/// As `node::start`, without what needs a machine.
async fn start(config: &Config, link: NodeLink, tree: &mut Tree) -> anyhow::Result<FakeRuntime> {
    let NodeLink { client, informers, streams, relay: _, heartbeat, node_ips, trace, clock } = link;
    let kubelet_config = super::kubelet_config(config, heartbeat, node_ips);
    let pod_cidr = super::given_pod_cidr(&kubelet_config, &client, &informers).await;
    let network = pod_cidr.split('/').next().and_then(|base| base.parse().ok());
    let runtime = FakeRuntime::new(clock.clone(), network.context("the node's addresses are no IPv4 network")?);
    // What peers, proxy and DNS follow on a board.
    for resource in [NODES, SERVICES, ENDPOINTSLICES] {
        informers.all(resource);
    }
    let kubelet = Kubelet::new(kubelet_config, client, &informers, Arc::new(runtime.clone()), clock, trace);
    super::run_kubelet(&kubelet, informers, streams, tree);
    Ok(runtime)
}
