//! Wires a node: network, runtime, kubelet, peers, proxy, DNS; the same on the server's own board and on a joined one.
//! What it starts belongs to the caller's task tree; pods outlive it.

#[cfg(feature = "fake")]
pub mod hollow;
pub mod joined;
pub mod joining;
pub mod renewal;
pub mod time;

use crate::api::view::node::Node as NodeView;
use crate::client::informer::Scope;
use crate::client::{Client, Informers, NODES};
use crate::clock::Clock;
use crate::config::Config;
use crate::dns::{self, DnsConfig};
use crate::image::ImageStore;
use crate::image::pull::Puller;
use crate::kubelet::board::Board;
use crate::kubelet::eviction;
use crate::kubelet::node_status::{self, Machine};
use crate::kubelet::plugin;
use crate::kubelet::shutdown::{self as machine_shutdown, ShutdownConfig};
use crate::kubelet::{Heartbeat, Kubelet, KubeletConfig, server as kubelet_server};
use crate::network::resolve::Resolver;
use crate::network::{Network, NetworkConfig, claim};
use crate::peers::{self, PeersConfig};
use crate::proxy::{self, ProxyConfig};
use crate::runtime::Runtime;
use crate::runtime::libcontainer::{LibcontainerRuntime, RuntimeConfig};
use crate::supervise::Tree;
use crate::sys::cgroup::Cgroups;
use crate::telemetry::Trace;
use crate::tunnel::{Streams, relay};
use anyhow::Context;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// What joins a node to its cluster.
pub struct NodeLink {
    pub client: Client,
    pub informers: Informers,
    /// What the server opens to this node's kubelet.
    pub streams: Streams,
    /// Takes packets to nodes that are reached no other way.
    pub relay: relay::Link,
    pub heartbeat: Heartbeat,
    /// This machine's addresses as other nodes find them; the first counts most.
    pub node_ips: watch::Receiver<Vec<IpAddr>>,
    pub trace: Arc<Trace>,
    pub clock: Clock,
}

/// A running node.
pub struct Node {
    network: Network,
    runtime: LibcontainerRuntime,
    _folder: std::fs::File,
    _bridge: claim::Claim,
    _dns: claim::Claim,
}

/// Starts the node; returns once its network and its runtime stand.
pub async fn start(config: &Config, link: NodeLink, tree: &mut Tree) -> anyhow::Result<Node> {
    let NodeLink { client, informers, streams, relay, heartbeat, node_ips, trace, clock } = link;
    let run = &config.run_directory;
    std::fs::create_dir_all(run).with_context(|| format!("make folder {}", run.display()))?;
    let folder = crate::server::claim(run)?;
    let bridge = claim::bridge(&config.bridge)?;
    let dns = claim::dns(config.dns_ip)?;
    note_run_directory(config)?;
    let kubelet_config = kubelet_config(config, heartbeat, node_ips);
    let pod_cidr = match &config.pod_cidr {
        Some(pod_cidr) => pod_cidr.clone(),
        None => given_pod_cidr(&kubelet_config, &client, &informers).await,
    };
    let network = Network::new(network_config(config, pod_cidr)).context("prepare the pod network")?;
    network.setup().await.context("set up the pod network")?;
    let images = ImageStore::open(&config.data_directory.join("images"), clock.clone())?;
    let puller = Puller::new(Arc::new(Resolver::default()), config.insecure_registries.clone())?;
    let runtime = runtime_config(config);
    let runtime =
        LibcontainerRuntime::new(runtime, images, puller, network.clone(), clock.clone(), trace.clone()).await?;

    let peering = PeersConfig {
        mode: config.pod_network,
        external_ip: config.node_external_ip,
        relay: Some(relay),
        ..PeersConfig::new(&config.node_name, network.clone(), run.clone())
    };
    tree.spawn("peers", peers::run(peering, client.clone(), informers.clone(), tree.shutdown()));
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

    let kubelet = Kubelet::new(kubelet_config, client, &informers, Arc::new(runtime.clone()), clock, trace);
    let listening = kubelet_server::listen(kubelet.clone(), socket(&config.run_directory), tree.shutdown());
    tree.spawn("local socket", listening);
    tree.spawn("device plugins", plugin::run(kubelet.clone(), config.run_directory.clone(), tree.shutdown()));
    tree.spawn("pressure", eviction::run(kubelet.clone(), tree.shutdown()));
    tree.spawn(
        "shutdown of the machine",
        machine_shutdown::run(kubelet.clone(), shutdown_config(config), tree.shutdown()),
    );
    run_kubelet(&kubelet, informers, streams, tree);
    Ok(Node { network, runtime, _folder: folder, _bridge: bridge, _dns: dns })
}

/// The name of a link in the data folder to the run folder: for those who know only where the data is.
const RUN_LINK: &str = "run";

fn note_run_directory(config: &Config) -> anyhow::Result<()> {
    let link = config.data_directory.join(RUN_LINK);
    if std::fs::read_link(&link).is_ok_and(|noted| noted == config.run_directory) {
        return Ok(());
    }
    let context = || format!("make link {}", link.display());
    std::fs::create_dir_all(&config.data_directory).with_context(context)?;
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&config.run_directory, &link).with_context(context)
}

/// Where the records of the pods are whose images and logs are in this data folder.
pub fn run_directory_of(data_directory: &Path) -> PathBuf {
    std::fs::read_link(data_directory.join(RUN_LINK)).unwrap_or_else(|_| "/run/edgelet".into())
}

/// What a kubelet does towards its server, whatever machine lies below it.
pub fn run_kubelet(kubelet: &Arc<Kubelet>, informers: Informers, streams: Streams, tree: &mut Tree) {
    tree.spawn("kubelet server", kubelet_server::serve(kubelet.clone(), streams, tree.shutdown()));
    tree.spawn("node status", node_status::run(kubelet.clone(), informers, tree.shutdown()));
    tree.spawn("kubelet", kubelet.clone().run(tree.shutdown()));
}

/// Where the kubelet answers people on its own board.
pub fn socket(run_directory: &Path) -> PathBuf {
    run_directory.join("kubelet.sock")
}

impl Node {
    /// Takes everything of this node away: for the demo and for uninstalling.
    pub async fn remove(&self) -> anyhow::Result<()> {
        self.runtime.remove_all().await.context("remove what is left of the pods")?;
        self.network.teardown().await.context("take the pod network down")
    }
}

fn shutdown_config(config: &Config) -> ShutdownConfig {
    let usual = ShutdownConfig::default();
    ShutdownConfig {
        grace_s: config.shutdown_grace_s.unwrap_or(usual.grace_s),
        critical_grace_s: config.shutdown_critical_grace_s.unwrap_or(usual.critical_grace_s),
        ..usual
    }
}

/// Registers the node and waits until its pods have been given addresses. A Node that is known already
/// (by a replica) answers at once, server or not.
pub async fn given_pod_cidr(config: &KubeletConfig, client: &Client, informers: &Informers) -> String {
    let own = Scope { field_selector: format!("metadata.name={}", config.node_name), ..Scope::default() };
    let mut changes = informers.get(NODES, own).subscribe();
    let given = async {
        loop {
            let node = changes.next().await.new.and_then(|item| item.view::<NodeView>().ok());
            match node.map(|node| node.spec.pod_cidr) {
                Some(pod_cidr) if !pod_cidr.is_empty() => return pod_cidr,
                _ => {}
            }
        }
    };
    let introduced = async {
        node_status::introduce(config, client).await;
        std::future::pending().await
    };
    tokio::select! {
        pod_cidr = given => pod_cidr,
        never = introduced => never,
    }
}

/// Takes everything of a node that does not run away: its pods, which outlived it, their logs, network and cgroups.
pub async fn remove(config: &Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.run_directory)
        .with_context(|| format!("make folder {}", config.run_directory.display()))?;
    let _claim = crate::server::claim(&config.run_directory)?;
    let clock = Clock::real();
    // What is taken away has the same names whatever part of the cluster's addresses the node was given.
    let network = Network::new(network_config(config, format!("{}/24", config.cluster_cidr.base())))
        .context("open the pod network")?;
    let images = ImageStore::open(&config.data_directory.join("images"), clock.clone())?;
    let puller = Puller::new(Arc::new(Resolver::default()), Vec::new())?;
    let runtime_config = runtime_config(config);
    let runtime =
        LibcontainerRuntime::new(runtime_config, images, puller, network.clone(), clock, Arc::default()).await?;
    // What cannot be taken away keeps nothing else.
    let retained = runtime.retain(&[]).await.context("give up what former pods left");
    let removed = runtime.remove_all().await.context("remove what is left of the pods");
    plugin::forget(&config.run_directory);
    let network = network.teardown().await.context("take the pod network down");
    retained.and(removed).and(network)
}

/// Takes away what a start that failed half-way has made, for those who must leave nothing behind. Call it when the
/// tree has ended: while an older `Network` of this process lives, the rules are its own.
pub async fn discard(config: &Config) -> anyhow::Result<()> {
    // What is taken away has the same names whatever part of the cluster's addresses the node was given.
    let network = Network::new(network_config(config, format!("{}/24", config.cluster_cidr.base())))
        .context("open the pod network")?;
    let taken_down = network.teardown().await.context("take the pod network down");
    let root = format!("/{}", config.cgroup_root);
    let remove = move || -> std::io::Result<()> {
        let cgroups = Cgroups::detect()?;
        cgroups.remove(&format!("{root}/shims")).and(cgroups.remove(&root))
    };
    taken_down.and(tokio::task::spawn_blocking(remove).await?.context("remove cgroups"))
}

fn network_config(config: &Config, pod_cidr: String) -> NetworkConfig {
    NetworkConfig {
        pod_cidr,
        cluster_cidr: config.cluster_cidr.to_string(),
        service_cidr: config.service_cidr.to_string(),
        dns_ip: IpAddr::V4(config.dns_ip),
        bridge: config.bridge.clone(),
        table: config.nftables_table.clone(),
        netns_directory: config.run_directory.join("netns"),
        state_directory: config.data_directory.join("network"),
    }
}

fn runtime_config(config: &Config) -> RuntimeConfig {
    RuntimeConfig {
        run_directory: config.run_directory.clone(),
        state_directory: config.data_directory.clone(),
        log_directory: config.log_directory.clone(),
        cgroup_root: format!("/{}", config.cgroup_root),
        shim_binary: None,
    }
}

fn kubelet_config(config: &Config, heartbeat: Heartbeat, node_ips: watch::Receiver<Vec<IpAddr>>) -> KubeletConfig {
    let machine = Machine::observe(&config.data_directory);
    KubeletConfig {
        node_name: config.node_name.clone(),
        node_ips,
        cluster_dns: vec![IpAddr::V4(config.dns_ip)],
        cluster_domain: config.cluster_domain.clone(),
        log_directory: config.log_directory.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
        labels: config.node_labels.iter().cloned().collect(),
        capacity: machine.capacity(),
        allocatable: machine.allocatable(),
        heartbeat,
        board: Board::observe(Path::new("/")),
        devices: config.devices.clone(),
    }
}
