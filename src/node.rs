//! Wires a node: network, runtime, kubelet, proxy, DNS.
//! What it starts belongs to the caller's task tree; pods outlive it.

use crate::client::{Client, Informers};
use crate::config::Config;
use crate::dns::{self, DnsConfig};
use crate::image::ImageStore;
use crate::image::pull::Puller;
use crate::kubelet::node_status::{self, Machine};
use crate::kubelet::{Kubelet, KubeletConfig, server as kubelet_server};
use crate::network::resolve::Resolver;
use crate::network::{Network, NetworkConfig};
use crate::proxy::{self, ProxyConfig};
use crate::runtime::libcontainer::{LibcontainerRuntime, RuntimeConfig};
use crate::server::ControlPlane;
use crate::supervise::Tree;
use crate::tunnel::Pipe;
use anyhow::Context;
use std::net::IpAddr;
use std::sync::Arc;

/// Streams that may wait for the kubelet to take them.
const STREAMS_LIMIT: usize = 16;

/// A running node.
pub struct Node {
    network: Network,
    runtime: LibcontainerRuntime,
    _claim: std::fs::File,
}

/// Starts the node of the server's own board.
pub async fn start(config: &Config, plane: &ControlPlane, tree: &mut Tree) -> anyhow::Result<Node> {
    let (clock, trace) = (plane.clock.clone(), plane.trace.clone());
    let run = &config.run_directory;
    std::fs::create_dir_all(run).with_context(|| format!("make folder {}", run.display()))?;
    let claim = crate::server::claim(run)?;
    let network = Network::new(network_config(config)).context("prepare the pod network")?;
    network.setup().await.context("set up the pod network")?;
    let images = ImageStore::open(&config.data_directory.join("images"), clock.clone())?;
    let puller = Puller::new(Arc::new(Resolver::default()), config.insecure_registries.clone())?;
    let runtime_config = RuntimeConfig {
        run_directory: config.run_directory.clone(),
        state_directory: config.data_directory.clone(),
        log_directory: config.log_directory.clone(),
        cgroup_root: format!("/{}", config.cgroup_root),
        shim_binary: None,
    };
    let runtime =
        LibcontainerRuntime::new(runtime_config, images, puller, network.clone(), clock.clone(), trace.clone()).await?;

    let (client, informers): (Client, Informers) = (plane.client.clone(), plane.informers.clone());
    let proxying = proxy::run(
        ProxyConfig { network: network.clone(), node_name: config.node_name.clone() },
        informers.clone(),
        clock.clone(),
        trace.clone(),
        tree.shutdown(),
    );
    tree.spawn("proxy", proxying);
    let dns_config =
        DnsConfig { domain: config.cluster_domain.clone(), ..DnsConfig::for_network(&network, &config.node_name) };
    tree.spawn("dns", dns::run(dns_config, informers.clone(), tree.shutdown()));

    let kubelet = Kubelet::new(kubelet_config(config), client, &informers, Arc::new(runtime.clone()), clock, trace);
    let (dials, streams) = tokio::sync::mpsc::channel(STREAMS_LIMIT);
    plane.tunnels.register(&config.node_name, Arc::new(Pipe(dials)));
    tree.spawn("kubelet server", kubelet_server::serve(kubelet.clone(), streams, tree.shutdown()));
    tree.spawn("node status", node_status::run(kubelet.clone(), informers, tree.shutdown()));
    tree.spawn("kubelet", kubelet.run(tree.shutdown()));
    Ok(Node { network, runtime, _claim: claim })
}

impl Node {
    /// Takes everything of this node away: for the demo and for uninstalling.
    pub async fn remove(&self) -> anyhow::Result<()> {
        self.runtime.remove_all().await.context("remove what is left of the pods")?;
        self.network.teardown().await.context("take the pod network down")
    }
}

fn network_config(config: &Config) -> NetworkConfig {
    NetworkConfig {
        pod_cidr: config.pod_cidr.clone(),
        cluster_cidr: config.cluster_cidr.to_string(),
        service_cidr: config.service_cidr.to_string(),
        dns_ip: IpAddr::V4(config.dns_ip),
        bridge: config.bridge.clone(),
        table: config.nftables_table.clone(),
        netns_directory: config.run_directory.join("netns"),
        state_directory: config.data_directory.join("network"),
    }
}

fn kubelet_config(config: &Config) -> KubeletConfig {
    let machine = Machine::observe(&config.data_directory);
    KubeletConfig {
        node_name: config.node_name.clone(),
        node_ips: vec![config.node_ip],
        cluster_dns: vec![IpAddr::V4(config.dns_ip)],
        cluster_domain: config.cluster_domain.clone(),
        log_directory: config.log_directory.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
        labels: config.node_labels.iter().cloned().collect(),
        capacity: machine.capacity(),
        allocatable: machine.allocatable(),
    }
}
